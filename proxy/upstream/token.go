package upstream

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// token is a computed token, with the secret that was used.
type token struct {
	secret *[]byte
	text   string
}

// SetSecret changes Settings.Secret, for later requests.
func (s *Set) SetSecret(secret []byte) {
	if old := s.secret.Load(); !bytes.Equal(*old, secret) {
		secret = bytes.Clone(secret)
		s.secret.Store(&secret)
	}
}

// Token identifies an endpoint to clients: it is the same for the same address and secret, in every proxy. Without the
// secret the address cannot be derived from it.
func (e *Endpoint) Token() string {
	secret := e.set.secret.Load()
	if t := e.token.Load(); t != nil && t.secret == secret {
		return t.text
	}
	h := hmac.New(sha256.New, append([]byte("wayleave affinity\n"), *secret...))
	_, _ = h.Write([]byte(e.text))
	t := &token{secret, hex.EncodeToString(h.Sum(nil)[:16])}
	e.token.Store(t)
	return t.text
}

// Named finds the endpoint of a token. A draining one is found only if there is no other.
func (b *Backend) Named(token []byte) *Endpoint {
	from := b.fresh
	if len(from) == 0 {
		from = b.all
	}
	for _, e := range from {
		if e.Token() == string(token) {
			return e
		}
	}
	return nil
}

// Fit reports whether the endpoint may be tried: it is not ejected, and not in tried.
func (e *Endpoint) Fit(tried []*Endpoint) bool { return e.fit(time.Now().UnixNano(), tried) }
