// Package hostile contains what tests of listeners share: floods of misbehaving clients, a meter of a process's memory
// and descriptors, and a well-behaved client that runs at the same time.
//
// A flood keeps its number of connections: it replaces those that the server closes. Everything ends with the test.
package hostile

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// Bounds of a flood.
const (
	// dialers open connections concurrently; each has a thread in the flood's namespace.
	dialers = 8
	// dialPatience bounds the wait for one connection.
	dialPatience = 2 * time.Second
	// redialAfter is the pause before a closed connection is replaced.
	redialAfter = 20 * time.Millisecond
)

// Flood is many connections to one listener. Set its fields, then call Start.
type Flood struct {
	// NS is the namespace of the clients; nil for the namespace of the test.
	NS *testnet.NS
	// Network is "tcp" if empty; "udp" and "unix" are allowed.
	Network string
	// Target is the address to connect to, such as "10.7.0.1:53".
	Target string
	// Sources are the clients' addresses, used in turn; empty for the kernel's choice.
	Sources []netip.Addr
	// Connections is the number that is kept open.
	Connections int
	// Once opens each connection only once.
	Once bool
	// Do is what a client does with its connection, until ctx ends: Idle, Partial, Slow, Bytes, or the test's own
	// function.
	Do func(ctx context.Context, c net.Conn) error

	open, opened, closed, failed, sent atomic.Int64
}

// Start begins the flood; stop ends it and waits. It ends with the test at the latest.
func (f *Flood) Start(t testing.TB) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	slots := make(chan int, f.Connections)
	for i := range f.Connections {
		slots <- i
	}
	var wg sync.WaitGroup
	for range min(dialers, f.Connections) {
		wg.Go(func() {
			err := f.in(func() error { f.dialAll(ctx, &wg, slots); return nil })
			if err != nil && ctx.Err() == nil {
				t.Errorf("flood of %s: %v", f.Target, err)
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func (f *Flood) in(fn func() error) error {
	if f.NS == nil {
		return fn()
	}
	return f.NS.Do(fn)
}

// dialAll opens the connection of each slot that it gets, on this thread.
func (f *Flood) dialAll(ctx context.Context, wg *sync.WaitGroup, slots chan int) {
	for {
		select {
		case <-ctx.Done():
			return
		case i := <-slots:
			c, err := f.dial(ctx, i)
			if err != nil {
				f.failed.Add(1)
			}
			wg.Go(func() {
				if err == nil {
					f.use(ctx, c)
				}
				if f.Once {
					return
				}
				select {
				case <-ctx.Done():
				case <-time.After(redialAfter):
					slots <- i // the channel has room for every slot
				}
			})
		}
	}
}

func (f *Flood) dial(ctx context.Context, i int) (net.Conn, error) {
	network := f.Network
	if network == "" {
		network = "tcp"
	}
	d := net.Dialer{Timeout: dialPatience}
	if len(f.Sources) > 0 {
		from := netip.AddrPortFrom(f.Sources[i%len(f.Sources)], 0)
		if network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(from)
		} else {
			d.LocalAddr = net.TCPAddrFromAddrPort(from)
		}
	}
	return d.DialContext(ctx, network, f.Target)
}

// use runs the clients, and closes the connection when the flood ends.
func (f *Flood) use(ctx context.Context, c net.Conn) {
	f.open.Add(1)
	f.opened.Add(1)
	end := context.AfterFunc(ctx, func() { c.Close() })
	defer func() {
		end()
		f.open.Add(-1)
		if ctx.Err() == nil {
			f.closed.Add(1)
		}
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // leave no ports in TIME_WAIT
		}
		c.Close()
	}()
	_ = f.Do(ctx, counted{c, &f.sent}) // the server is expected to close it
}

// counted counts what is sent.
type counted struct {
	net.Conn
	sent *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

// Open returns the number of open connections, from the clients' side.
func (f *Flood) Open() int { return int(f.open.Load()) }

// Opened returns the number of connections so far.
func (f *Flood) Opened() int { return int(f.opened.Load()) }

// Closed returns how many of them the server closed.
func (f *Flood) Closed() int { return int(f.closed.Load()) }

// Failed returns how many could not be opened.
func (f *Flood) Failed() int { return int(f.failed.Load()) }

// Sent returns how many bytes the kernel accepted from the clients.
func (f *Flood) Sent() int64 { return f.sent.Load() }
