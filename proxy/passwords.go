package proxy

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"wayleave.dev/proxy/htpasswd"
)

// passwords compares passwords with hashes, and caches the results of slow comparisons for a while, by a keyed hash
// that is useless elsewhere. At most half of the processors compare at a time, so that guessing passwords does not
// block other requests. Namespaces take turns, so that guesses at the passwords of one tenant do not keep the users of
// another out, and one client can have few comparisons waiting. The zero value is ready.
type passwords struct {
	once sync.Once
	key  [sha256.Size]byte
	// most is the limit of concurrent comparisons, wait how long a request waits for its turn.
	most int
	wait time.Duration

	mu sync.Mutex
	// right and wrong are separate, so that wrong results do not displace right ones.
	right, wrong map[passwordKey]struct{}
	running      int
	// pending are the comparisons that wait or run, by their result's key.
	pending map[passwordKey]*comparison
	// waiting are those that wait, by namespace; turns are the namespaces in it, in their order.
	waiting map[string][]*comparison
	turns   []string
	clients map[guesser]int
}

const (
	maxRemembered = 4096
	// maxWait is how long a request waits for its turn.
	maxWait = 5 * time.Second
	// maxGuesses is how many passwords of one client, for the paths of one namespace, may wait to be compared.
	maxGuesses = 32
)

// passwordKey identifies a hash and a password.
type passwordKey [sha256.Size]byte

// guesser is a client, and the namespace of the path whose password it sends.
type guesser struct {
	namespace string
	client    netip.Prefix
}

// comparison is made once for all requests that wait for its result. requests, right, and whether there is a password,
// are guarded by passwords.mu.
type comparison struct {
	key      passwordKey
	hash     string
	password []byte
	who      guesser
	// requests is how many wait for it: one without any is not made.
	requests int
	right    bool
	// begun is closed when its turn comes, done when the result is known.
	begun, done chan struct{}
}

func (p *passwords) start() {
	_, _ = rand.Read(p.key[:]) // never fails
	p.most, p.wait = max(1, runtime.GOMAXPROCS(0)/2), maxWait
	p.right, p.wrong = map[passwordKey]struct{}{}, map[passwordKey]struct{}{}
	p.pending, p.waiting = map[passwordKey]*comparison{}, map[string][]*comparison{}
	p.clients = map[guesser]int{}
}

// verify reports whether the password matches the hash; the error means that there was no time to check.
func (p *passwords) verify(ctx context.Context, who guesser, hash string, password []byte) (bool, error) {
	if !htpasswd.Of(hash).Slow() || len(password) > htpasswd.MaxPassword {
		return htpasswd.Verify(hash, password), nil
	}
	p.once.Do(p.start)
	h := hmac.New(sha256.New, p.key[:])
	_, _ = h.Write([]byte(hash))
	_, _ = h.Write([]byte{0}) // no hash contains one
	_, _ = h.Write(password)
	c, right, err := p.compare(&comparison{key: passwordKey(h.Sum(nil)), hash: hash, password: password, who: who})
	if c == nil {
		return right, err
	}
	timer := time.NewTimer(p.wait)
	defer timer.Stop()
	select {
	case <-c.begun:
	case <-timer.C:
		err = errBusy
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		select {
		case <-c.done:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return p.leave(c, err)
}

// compare returns the comparison to wait for: a pending one with the same key, or c itself. It returns none if the
// result is known, or if the client has too many waiting.
func (p *passwords) compare(c *comparison) (of *comparison, right bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if right, known := p.recall(c.key); known {
		return nil, right, nil
	}
	if of := p.pending[c.key]; of != nil {
		of.requests++
		return of, false, nil
	}
	if p.clients[c.who] >= maxGuesses {
		return nil, false, errBusy
	}
	c.requests, c.begun, c.done = 1, make(chan struct{}), make(chan struct{})
	p.clients[c.who]++
	p.pending[c.key] = c
	ns := c.who.namespace
	if len(p.waiting[ns]) == 0 {
		p.turns = append(p.turns, ns)
	}
	p.waiting[ns] = append(p.waiting[ns], c)
	if p.running < p.most {
		p.running++
		go p.work()
	}
	return c, false, nil
}

// leave ends a request's wait. A comparison that no request waits for any more is forgotten.
func (p *passwords) leave(c *comparison, err error) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.requests--; err == nil {
		return c.right, nil
	}
	if c.requests == 0 && p.pending[c.key] == c && c.password != nil {
		p.forget(c)
	}
	return false, err
}

// forget removes a comparison from the pending ones; p.mu is held.
func (p *passwords) forget(c *comparison) {
	delete(p.pending, c.key)
	if p.clients[c.who]--; p.clients[c.who] == 0 {
		delete(p.clients, c.who)
	}
	c.password = nil
}

// work makes comparisons until none waits.
func (p *passwords) work() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := p.next(); c != nil; c = p.next() {
		password := c.password
		close(c.begun)
		p.mu.Unlock()
		right := htpasswd.Verify(c.hash, password)
		p.mu.Lock()
		p.keep(c.key, right)
		if c.right = right; p.pending[c.key] == c {
			p.forget(c)
		}
		close(c.done)
	}
	p.running--
}

// next takes out the oldest comparison of the namespace whose turn it is; nil for none. p.mu is held.
func (p *passwords) next() *comparison {
	for len(p.turns) > 0 {
		ns := p.turns[0]
		c, rest := p.waiting[ns][0], p.waiting[ns][1:]
		wanted := c.requests > 0
		if p.waiting[ns] = rest; len(rest) == 0 {
			delete(p.waiting, ns)
		}
		if wanted || len(rest) == 0 {
			p.turns = p.turns[1:]
			if len(rest) > 0 {
				p.turns = append(p.turns, ns)
			}
		}
		if wanted {
			return c
		}
	}
	return nil
}

// recall returns a cached result; p.mu is held.
func (p *passwords) recall(k passwordKey) (right, known bool) {
	if _, ok := p.right[k]; ok {
		return true, true
	}
	_, ok := p.wrong[k]
	return false, ok
}

// keep caches a result; p.mu is held.
func (p *passwords) keep(k passwordKey, right bool) {
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
