package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// guesserOf is the n-th client that sends passwords for paths of a namespace.
func guesserOf(namespace string, n int) guesser {
	return guesser{namespace, clientOf(netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}))}
}

// waits returns how many comparisons wait.
func (p *passwords) waits() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range p.waiting {
		n += len(list)
	}
	return n
}

// occupied returns passwords of which no comparison is made until the function that is returned is called.
func occupied() (*passwords, func()) {
	p := &passwords{}
	p.once.Do(p.start)
	p.running, p.wait = p.most, time.Minute
	return p, func() { p.work() }
}

// Strangers guess passwords of one tenant, from many addresses, all the time: a user of another tenant is let in at
// once.
func TestGuessesKeepNoOtherTenantsUsersOut(t *testing.T) {
	t.Parallel()
	p, _ := occupied()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	const guesses = 500
	for i := range guesses {
		all.Go(func() { _, _ = p.verify(ctx, guesserOf("a", i), hashBcrypt, fmt.Append(nil, "guess", i)) })
	}
	testnet.Eventually(t, 30*time.Second, func() error {
		if n := p.waits(); n != guesses {
			return fmt.Errorf("%d of %d guesses wait", n, guesses)
		}
		return nil
	})
	all.Go(func() { _, _ = p.verify(ctx, guesserOf("b", 1), hashBcrypt, []byte("secret")) })
	testnet.Eventually(t, 30*time.Second, func() error {
		if n := p.waits(); n != guesses+1 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, want := range []string{"a", "b", "a"} {
		if c := p.next(); c == nil || c.who.namespace != want {
			t.Fatalf("turn %d is not that of namespace %s: %+v", i, want, c)
		}
	}
}

// One client can have few guesses waiting, and takes no turns of other clients of the tenant with the rest.
func TestGuessesOfOneClientAreBounded(t *testing.T) {
	t.Parallel()
	p, work := occupied()
	var all sync.WaitGroup
	results := make(chan error, 4*maxGuesses)
	ctx, cancel := context.WithCancel(t.Context())
	for i := range cap(results) {
		all.Go(func() {
			_, err := p.verify(ctx, guesserOf("a", 1), hashBcrypt, fmt.Append(nil, "guess", i))
			results <- err
		})
	}
	for range cap(results) - maxGuesses {
		if err := <-results; err != errBusy {
			t.Fatalf("a guess above the bound: %v, want %v", err, errBusy)
		}
	}
	if n := p.waits(); n != maxGuesses {
		t.Errorf("%d guesses wait, want %d", n, maxGuesses)
	}
	cancel() // they leave, and cost nothing any more
	all.Wait()
	if len(p.pending) > 0 || len(p.clients) > 0 {
		t.Errorf("%d comparisons of %d clients are left", len(p.pending), len(p.clients))
	}
	work()
	if n := p.waits(); n > 0 || len(p.wrong) > 0 {
		t.Errorf("%d wait, %d were made for nobody", n, len(p.wrong))
	}
}

// A comparison waits for its turn, and gives up with its request. One is made for all requests with the same password;
// what is known needs none.
func TestPasswordsWaitForTheirTurn(t *testing.T) {
	t.Parallel()
	p, work := occupied()
	who := guesserOf("a", 1)
	p.once.Do(p.start)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if right, err := p.verify(ctx, who, hashBcrypt, []byte("Secret")); right || err == nil {
		t.Fatal(right, err)
	}
	if right, err := p.verify(t.Context(), who, hashSHA, []byte("secret")); !right || err != nil {
		t.Fatal(right, err)
	}
	const same = 2 * maxGuesses
	results := make(chan error, same)
	for range same {
		go func() {
			right, err := p.verify(t.Context(), who, hashBcrypt, []byte("secret"))
			if !right && err == nil {
				err = fmt.Errorf("the right password is wrong")
			}
			results <- err
		}()
	}
	testnet.Eventually(t, 30*time.Second, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.pending {
			if c.requests == same {
				return nil
			}
		}
		return fmt.Errorf("not all requests wait for one comparison")
	})
	go work()
	for range same {
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	}
	if right, err := p.verify(t.Context(), who, hashBcrypt, []byte("secret")); !right || err != nil {
		t.Fatal(right, err)
	}
	if right, err := p.verify(t.Context(), who, hashBcrypt, []byte("Secret")); right || err != nil {
		t.Fatal(right, err)
	}
	testnet.Eventually(t, 30*time.Second, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.running != p.most-1 { // work of this test ended once, in place of all that were counted as running
			return fmt.Errorf("%d run", p.running)
		}
		return nil
	})
}
