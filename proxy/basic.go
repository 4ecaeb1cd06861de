package proxy

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"runtime"
	"sync"
	"time"

	"wayleave.dev/proxy/htpasswd"
	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
)

var errBusy = errors.New("too many passwords are being compared")

// basic checks a name and a password (RFC 7617).
func (x *exchange) basic(a *schema.Auth) (answered bool) {
	right, err := x.signedIn(a)
	switch {
	case err != nil:
		x.fail(503, err)
	case !right:
		x.challenge(a)
	default:
		return false
	}
	return true
}

// challenge requests a name and a password.
func (x *exchange) challenge(a *schema.Auth) {
	x.reply(401, message.Fields{{Name: []byte("WWW-Authenticate"), Value: challenge(a.Realm)}})
}

// signedIn reports whether the request has the name and the password of a user; the error means that there was no time
// to check.
func (x *exchange) signedIn(a *schema.Auth) (bool, error) {
	name, password, ok := credentials(x.r.Fields.Get("Authorization"))
	if !ok {
		return false, nil
	}
	hash, known := a.Users[string(name)]
	if !known { // an unknown name takes as long as a known one
		for _, hash = range a.Users {
			break
		}
	}
	right, err := x.p.passwords.verify(x.ctx, hash, password)
	x.opt.signed = right && known && err == nil
	return x.opt.signed, err
}

// challenge quotes the realm; characters that a quoted string cannot contain are left out.
func challenge(realm string) []byte {
	v := []byte(`Basic realm="`)
	for i := range len(realm) {
		switch c := realm[i]; {
		case c < ' ' || c == 0x7f:
		case c == '"' || c == '\\':
			v = append(v, '\\', c)
		default:
			v = append(v, c)
		}
	}
	return append(v, '"')
}

// maxCredentials bounds the field Authorization.
const maxCredentials = 4 << 10

// credentials parses the field Authorization.
func credentials(field []byte) (name, password []byte, ok bool) {
	scheme, rest, ok := bytes.Cut(field, []byte(" "))
	if !ok || len(field) > maxCredentials || !message.EqualFold(scheme, "basic") {
		return nil, nil, false
	}
	plain, err := base64.StdEncoding.Strict().AppendDecode(nil, bytes.Trim(rest, " "))
	if err != nil {
		return nil, nil, false
	}
	return bytes.Cut(plain, []byte(":"))
}

// passwords compares passwords with hashes, and caches the results of slow comparisons for a while, by a keyed hash
// that is useless elsewhere. At most half of the processors compare at a time, so that guessing passwords does not
// block other requests. The zero value is ready.
type passwords struct {
	once  sync.Once
	key   [sha256.Size]byte
	slots chan struct{}

	mu sync.Mutex
	// right and wrong are separate, so that wrong results do not displace right ones.
	right, wrong map[[sha256.Size]byte]struct{}
}

const (
	maxRemembered = 4096
	// maxWait is how long a request waits to be compared.
	maxWait = 5 * time.Second
)

func (p *passwords) start() {
	_, _ = rand.Read(p.key[:]) // never fails
	p.slots = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))
	p.right, p.wrong = map[[sha256.Size]byte]struct{}{}, map[[sha256.Size]byte]struct{}{}
}

// verify reports whether the password matches the hash; the error means that there was no time to check.
func (p *passwords) verify(ctx context.Context, hash string, password []byte) (bool, error) {
	if !htpasswd.Of(hash).Slow() || len(password) > htpasswd.MaxPassword {
		return htpasswd.Verify(hash, password), nil
	}
	p.once.Do(p.start)
	h := hmac.New(sha256.New, p.key[:])
	_, _ = h.Write([]byte(hash))
	_, _ = h.Write([]byte{0}) // no hash contains one
	_, _ = h.Write(password)
	k := [sha256.Size]byte(h.Sum(nil))
	if right, known := p.remembered(k); known {
		return right, nil
	}
	timer := time.NewTimer(maxWait)
	defer timer.Stop()
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-timer.C:
		return false, errBusy
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if right, known := p.remembered(k); known { // another request computed it meanwhile
		return right, nil
	}
	right := htpasswd.Verify(hash, password)
	p.remember(k, right)
	return right, nil
}

func (p *passwords) remembered(k [sha256.Size]byte) (right, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.right[k]; ok {
		return true, true
	}
	_, ok := p.wrong[k]
	return false, ok
}

func (p *passwords) remember(k [sha256.Size]byte, right bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.wrong
	if right {
		m = p.right
	}
	for old := range m {
		if len(m) < maxRemembered {
			break
		}
		delete(m, old)
	}
	m[k] = struct{}{}
}
