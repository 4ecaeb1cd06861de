package nftables

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/networkpolicy"
)

func (l *lab) begun() uint64 {
	l.t.Helper()
	n, err := l.path.Redirected()
	if err != nil {
		l.t.Fatal(err)
	}
	return n.Begun
}

// dialer makes connections one after the other, as fast as it can, and keeps them.
type dialer struct {
	ns *testnet.NS
	to netip.AddrPort
	// denied is set when policy forbids connections.
	denied atomic.Bool

	mu   sync.Mutex
	open []net.Conn
	late []string // connections that began after policy forbade them
}

func (d *dialer) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		forbidden, start := d.denied.Load(), time.Now()
		c, err := d.ns.Dial("tcp", d.to.String(), impatience)
		if err != nil {
			continue
		}
		_ = echoed(c, impatience) // the fast path learns from connections with data
		d.mu.Lock()
		d.open = append(d.open, c)
		if forbidden {
			d.late = append(d.late, fmt.Sprintf("%s began at %s", c.LocalAddr(), start))
		}
		if len(d.open) > 20 && !forbidden {
			_ = d.open[0].Close()
			d.open = d.open[1:]
		}
		d.mu.Unlock()
	}
}

// While connections begin on the fast path, policies change. Once a change is applied, no connection begins that it
// forbids, and those that began until then are cut by the sweeps, in both directions.
func TestNoConnectionBeginsAgainstAPolicyInForce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.fastPath()
	a, b := l.pods["a"], l.pods["b"]
	for _, tt := range []struct {
		name      string
		from, to  *testnet.NS
		addr      [2]netip.Addr
		direction networkpolicy.Direction
		local     *pod
		peer      [2]netip.Addr
	}{
		{"ingress on one node", b.NS, a.NS, a.addrs, in, a, b.addrs},
		{"egress on one node", b.NS, a.NS, a.addrs, out, b, a.addrs},
		{"ingress from another node", l.outside, a.NS, a.addrs, in, a, [2]netip.Addr{outsideAddr(false),
			outsideAddr(true)}},
		{"egress to another node", b.NS, l.outside, [2]netip.Addr{farAddr(false), farAddr(true)}, out, b,
			[2]netip.Addr{farAddr(false), farAddr(true)}},
	} {
		wide := rules{}.isolate(tt.local, tt.direction, "p").peer(tt.direction, "p", ports(tcp(80, 80)), tt.peer[:]...)
		narrow := rules{}.isolate(tt.local, tt.direction, "p")
		for round := range 4 {
			is6 := round%2 == 1
			l.apply(wide)
			d := &dialer{ns: tt.from, to: port(at(tt.addr, is6), 80)}
			stop := make(chan struct{})
			var wg sync.WaitGroup
			before := l.begun()
			for range 4 {
				wg.Go(func() { d.run(stop) })
			}
			testnet.Eventually(t, 30*time.Second, func() error {
				if l.begun() < before+20 {
					return fmt.Errorf("%s: %d connections began on the fast path", tt.name, l.begun()-before)
				}
				return nil
			})
			l.apply(narrow)
			d.denied.Store(true)
			l.sweep()
			time.Sleep(again)
			l.sweep()
			close(stop)
			wg.Wait()
			time.Sleep(l.forgets)
			for _, x := range d.late {
				t.Errorf("%s: %s, though it is forbidden", tt.name, x)
			}
			if len(d.open) == 0 {
				t.Errorf("%s: there is no connection", tt.name)
			}
			var cut sync.WaitGroup
			for _, c := range d.open {
				cut.Go(func() {
					defer c.Close()
					if err := echoed(c, impatience); err == nil {
						t.Errorf("%s: %s is open, though it is forbidden", tt.name, c.LocalAddr())
					}
				})
			}
			cut.Wait()
		}
	}
}
