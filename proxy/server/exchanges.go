package server

import (
	"sync"

	"wayleave.dev/proxy/h1"
)

// exchanges are those of a connection of HTTP/2. All fields are guarded by mu.
type exchanges struct {
	mu sync.Mutex
	// streams is their number; owing is how many of them wait for the client.
	streams, owing int
}

// debt is what a stream waits for from its client; guarded by its connection's mu.
type debt struct{ body, response bool }

func (d *debt) any() bool { return d.body || d.response }

// begin counts an exchange of HTTP/2; false if the connection was evicted.
func (k *conn) begin() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.streams++
	return k.settle(0)
}

// end removes an exchange from the counts. It owes nothing any more.
func (k *conn) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.streams--
	k.settle(0)
}

// owe changes what one stream waits for, after n bytes of progress; which is one of the fields of d.
func (k *conn) owe(d *debt, which *bool, owes bool, n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	before := d.any()
	*which = owes
	switch after := d.any(); {
	case after && !before:
		k.owing++
	case before && !after:
		k.owing--
	case n == 0:
		return
	}
	k.settle(n)
}

// settle sets the phase: a connection waits for its client if all its exchanges do.
func (k *conn) settle(n int) bool {
	switch {
	case k.streams == 0:
		return k.state.To(h1.Idle)
	case k.owing == k.streams:
		k.state.Owes(n)
		return true
	}
	return k.state.To(h1.Busy)
}
