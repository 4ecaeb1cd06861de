package supervisor

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"wayleave.dev/internal/frame"
)

// Order is an order of the agent with its descriptors, which the receiver closes.
type Order[O any] struct {
	Order O
	Files []*os.File
}

// Parent is the agent, as its child sees it. The child's loop receives from Orders and Probes.
type Parent[O, N any] struct {
	// Orders are the agent's orders, in their sequence. The channel is closed when the agent is gone: see Err.
	Orders <-chan Order[O]
	// Probes is received from to show that the loop makes progress.
	Probes <-chan struct{}

	out    frame.Sender
	merge  func(waiting *O, next O) bool
	orders chan Order[O]
	probes chan struct{}
	done   chan struct{}

	queued  chan struct{} // an order waits, or the agent is gone
	pinged  chan struct{} // an answer is due
	unsent  chan struct{} // there are news
	probing chan struct{} // a probe is due

	mu     sync.Mutex
	queue  []Order[O]
	err    error // of the connection, which ends it
	pong   uint64
	behind time.Time // since when a probe waits
	next   *N
}

// NewParent reads and answers the frames of a connection until Close. merge, which may be nil, joins an order with
// the last one in the queue and returns true, or returns false. The order that the loop takes next has left the queue.
// merge is called only for orders without descriptors.
func NewParent[O, N any](conn *net.UnixConn, merge func(waiting *O, next O) bool) *Parent[O, N] {
	signal := func() chan struct{} { return make(chan struct{}, 1) }
	p := &Parent[O, N]{out: frame.Sender{Conn: conn}, merge: merge, orders: make(chan Order[O]),
		probes: make(chan struct{}), done: make(chan struct{}), queued: signal(), pinged: signal(), unsent: signal(),
		probing: signal()}
	p.Orders, p.Probes = p.orders, p.probes
	go p.read(conn)
	go p.pass()
	go p.probe()
	go p.on(p.pinged, p.answer)
	go p.on(p.unsent, p.send)
	return p
}

// Close ends the answers. The connection stays open.
func (p *Parent[O, N]) Close() { close(p.done) }

// Err returns why Orders was closed; nil if the agent closed its connection or was killed.
func (p *Parent[O, N]) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	// A killed agent leaves a reset socket.
	if errors.Is(p.err, io.EOF) || errors.Is(p.err, syscall.ECONNRESET) {
		return nil
	}
	return p.err
}

// Put changes the news to be sent. It does not wait: what an agent has not read is replaced.
func (p *Parent[O, N]) Put(change func(*N)) {
	p.mu.Lock()
	if p.next == nil {
		p.next = new(N)
	}
	change(p.next)
	p.mu.Unlock()
	notify(p.unsent)
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// read never waits for the loop, so that pings are read while it works.
func (p *Parent[O, N]) read(conn *net.UnixConn) {
	defer notify(p.queued)
	for {
		var f toChild[O]
		files, err := frame.Receive(conn, &f)
		p.mu.Lock()
		if err != nil {
			p.err = err
			p.mu.Unlock()
			return
		}
		if f.Order != nil {
			p.enqueue(Order[O]{*f.Order, files})
		}
		if f.Ping != 0 {
			p.pong = f.Ping
			if p.behind.IsZero() {
				p.behind = time.Now()
				notify(p.probing)
			}
			notify(p.pinged)
		}
		p.mu.Unlock()
	}
}

// enqueue needs mu.
func (p *Parent[O, N]) enqueue(o Order[O]) {
	if n := len(p.queue); p.merge != nil && n > 0 && len(o.Files)+len(p.queue[n-1].Files) == 0 &&
		p.merge(&p.queue[n-1].Order, o.Order) {
		return
	}
	p.queue = append(p.queue, o)
	notify(p.queued)
}

// pass gives the queue to the loop.
func (p *Parent[O, N]) pass() {
	defer close(p.orders)
	for {
		p.mu.Lock()
		if len(p.queue) == 0 {
			ended := p.err != nil
			p.mu.Unlock()
			if ended {
				return
			}
			select {
			case <-p.queued:
			case <-p.done:
				return
			}
			continue
		}
		o := p.queue[0]
		p.queue = p.queue[1:]
		p.mu.Unlock()
		select {
		case p.orders <- o:
		case <-p.done:
			return
		}
	}
}

// probe lets the loop take a probe for a ping, and notes when it has.
func (p *Parent[O, N]) probe() {
	for {
		select {
		case <-p.probing:
		case <-p.done:
			return
		}
		select {
		case p.probes <- struct{}{}:
		case <-p.done:
			return
		}
		p.mu.Lock()
		p.behind = time.Time{}
		p.mu.Unlock()
	}
}

// on calls do at each signal, until the agent is gone.
func (p *Parent[O, N]) on(signal <-chan struct{}, do func() error) {
	for {
		select {
		case <-signal:
		case <-p.done:
			return
		}
		if do() != nil {
			return // the agent is gone, which the reader notices, too
		}
	}
}

func (p *Parent[O, N]) answer() error {
	p.mu.Lock()
	f := toAgent[N]{Pong: p.pong}
	if !p.behind.IsZero() {
		f.Behind = time.Since(p.behind)
	}
	p.mu.Unlock()
	return p.out.Send(f)
}

func (p *Parent[O, N]) send() error {
	p.mu.Lock()
	f := toAgent[N]{News: p.next}
	p.next = nil
	p.mu.Unlock()
	if f.News == nil {
		return nil
	}
	return p.out.Send(f)
}
