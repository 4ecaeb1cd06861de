package l2

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// A flood of questions gets so many answers a second and no more; questions for addresses that are not this node's
// get none.
func TestAFloodOfQuestionsIsBounded(t *testing.T) {
	node, outside := testnet.New(t, "node"), testnet.New(t, "outside")
	testnet.Veth(node, "eth0", outside, "eth0")
	ours, other := netip.MustParseAddr("10.9.0.100"), netip.MustParseAddr("10.9.0.101")
	link := linkOf(t, node, "eth0")
	r := NewResponder(slog.New(slog.DiscardHandler), make(chan Heard, 1))
	defer r.Close()
	var f *os.File
	node.Must(func() (err error) { f, err = OpenSocket(KindARP, link.Index); return err })
	r.Set([]VIP{{Addr: ours, Interfaces: []string{"eth0"}}, {Addr: other, Interfaces: []string{"eth0"}}},
		map[netip.Addr][]string{ours: {"eth0"}}, nil, []Link{link})
	r.Adopt(KindARP, link.Index, f)
	from := linkOf(t, outside, "eth0")
	var out *os.File
	outside.Must(func() (err error) { out, err = OpenSocket(KindARP, from.Index); return err })
	defer out.Close()
	ask := func(addr netip.Addr, n int) {
		frame := appendARP(nil, arpRequest, from.MAC, broadcast, netip.MustParseAddr("10.9.0.9"), addr, MAC{})
		for range n {
			if _, err := out.Write(frame); err != nil {
				time.Sleep(time.Millisecond) // the link's queue is full
			}
		}
	}
	ask(other, 1000)
	begin := time.Now()
	ask(ours, 60000)
	testnet.Eventually(t, 20*time.Second, func() error { // the flood has been read when nothing changes any more
		a, i := r.Counters()
		time.Sleep(50 * time.Millisecond)
		if b, j := r.Counters(); a != b || i != j || a == 0 {
			return errMoving
		}
		return nil
	})
	most := uint64(answersPerSecond * (1 + time.Since(begin).Seconds()))
	if n, ignored := r.Counters(); n > most || n < answersPerSecond/2 {
		t.Errorf("%d answers in %s (%d frames ignored), want %d at most", n, time.Since(begin), ignored, most)
	}
}

func TestABucketFillsInASecond(t *testing.T) {
	now := time.Unix(0, 0)
	b := newBucket(now)
	given := 0
	for range 3 * answersPerSecond {
		if b.take(now) {
			given++
		}
	}
	if given != answersPerSecond || !b.take(now.Add(time.Second)) || b.take(now.Add(-time.Hour)) &&
		b.left > answersPerSecond {
		t.Errorf("%d at once, want %d", given, answersPerSecond)
	}
}

var errMoving = errors.New("frames are still read")

func linkOf(t *testing.T, ns *testnet.NS, name string) Link {
	t.Helper()
	var l Link
	ns.Must(func() error {
		i, err := net.InterfaceByName(name)
		if err == nil {
			l = Link{Name: name, Index: i.Index, MAC: MAC(i.HardwareAddr), Up: true}
		}
		return err
	})
	return l
}
