package peers

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

var quiet = slog.New(slog.DiscardHandler)

func key(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

// cluster is nodes at loopback addresses, all with one port that is free.
type cluster struct {
	t     *testing.T
	port  uint16
	peers []Peer
}

func newCluster(t *testing.T, n int) *cluster {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer free.Close()
	w := &cluster{t: t, port: uint16(free.Addr().(*net.TCPAddr).Port)}
	for i := range n {
		w.peers = append(w.peers, Peer{fmt.Sprint("node", i+1),
			[]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)})}})
	}
	return w
}

func (w *cluster) start(i int, keys ...[]byte) *Peers {
	w.t.Helper()
	p, err := Start(Config{Node: w.peers[i].Name, Addr: netip.AddrPortFrom(w.peers[i].Addrs[0], w.port), Keys: keys,
		Log: quiet}, Meta{MACs: [][6]byte{{2, 0, 0, 0, 0, byte(i)}}})
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *cluster) stop(p *Peers, leave bool) {
	w.t.Helper()
	if err := p.Close(leave); err != nil {
		w.t.Error(err)
	}
}

// sees waits until p knows that exactly these live.
func (w *cluster) sees(p *Peers, within time.Duration, want ...string) {
	w.t.Helper()
	testnet.Eventually(w.t, within, func() error {
		var live []string
		for _, m := range p.Members() {
			if m.Live {
				live = append(live, m.Name)
			}
		}
		if fmt.Sprint(live) != fmt.Sprint(want) {
			return fmt.Errorf("%s sees %v, want %v", p.cfg.Node, live, want)
		}
		return nil
	})
}

func (w *cluster) says(p *Peers, peer string, willing bool) {
	w.t.Helper()
	testnet.Eventually(w.t, 5*time.Second, func() error {
		for _, m := range p.Members() {
			if m.Name == peer && m.Meta.Willing == willing && len(m.Meta.MACs) == 1 {
				return nil
			}
		}
		return fmt.Errorf("%s does not know that %s is willing=%t: %+v", p.cfg.Node, peer, willing, p.Members())
	})
}

// Nodes find each other, whoever starts first, and learn what the others say; one that is gone
// without a word is noticed, one that leaves says so; one that comes back is seen again.
func TestPeersSeeEachOther(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 3)
	var p []*Peers
	for i := range 3 {
		p = append(p, w.start(i, key(1)))
		p[i].SetPeers(w.peers)
	}
	for i, want := range [][]string{{"node2", "node3"}, {"node1", "node3"}, {"node1", "node2"}} {
		w.sees(p[i], 10*time.Second, want...)
		<-p[i].Ready()
	}
	p[0].SetMeta(Meta{Willing: true, MACs: [][6]byte{{2}}})
	w.says(p[1], "node1", true)
	w.says(p[2], "node1", true)

	w.stop(p[0], false)
	w.sees(p[1], 10*time.Second, "node3")
	w.says(p[1], "node1", true) // its MAC is remembered
	p[0] = w.start(0, key(1))
	p[0].SetPeers(w.peers)
	w.sees(p[1], 10*time.Second, "node1", "node3")
	w.says(p[1], "node1", false)

	// Who leaves is gone at once; the others look for it again, since it did not say for how long.
	w.stop(p[2], true)
	w.sees(p[0], 10*time.Second, "node2")
	w.stop(p[0], false)
	w.stop(p[1], false)
}

// A machine that has the key but is no node of the cluster, or one that has not the key, is
// not let in.
func TestStrangersAreNotLetIn(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 4)
	node1, node2 := w.start(0, key(1)), w.start(1, key(1))
	stranger, keyless := w.start(2, key(1)), w.start(3, key(2))
	node1.SetPeers([]Peer{w.peers[0], w.peers[1], w.peers[3]})
	node2.SetPeers([]Peer{w.peers[0], w.peers[1], w.peers[3]})
	stranger.SetPeers(w.peers)
	keyless.SetPeers(w.peers)
	<-stranger.Ready()
	<-keyless.Ready()
	w.sees(node1, 10*time.Second, "node2")
	w.sees(node2, 10*time.Second, "node1")
	w.sees(keyless, time.Second)
	if n := node1.list.NumMembers(); n != 2 {
		t.Errorf("node1 has %d members, want itself and node2", n)
	}
	for _, p := range []*Peers{node1, node2, stranger, keyless} {
		w.stop(p, false)
	}
}

// A new key comes to one node after the other, and none is lost on the way.
func TestKeysAreChanged(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 2)
	a, b := w.start(0, key(1)), w.start(1, key(1))
	a.SetPeers(w.peers)
	b.SetPeers(w.peers)
	w.sees(a, 10*time.Second, "node2")
	for _, keys := range [][][]byte{{key(1), key(2)}, {key(2), key(1)}, {key(2)}} {
		for _, p := range []*Peers{a, b} {
			if err := p.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
		}
	}
	a.SetMeta(Meta{Willing: true, MACs: [][6]byte{{2}}})
	w.says(b, "node1", true)
	if err := a.SetKeys([][]byte{{1, 2, 3}}); err == nil {
		t.Error("a key of 3 bytes is taken")
	}
	w.stop(a, false)
	w.stop(b, false)
}

func TestMetaOfOthersIsRead(t *testing.T) {
	m := Meta{Willing: true, MACs: [][6]byte{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}}
	got, ok := parseMeta(m.bytes())
	if !ok || !got.equal(m) {
		t.Errorf("%v, want %v", got, m)
	}
	for _, bad := range [][]byte{nil, {1}, {0, 0, 0}, {1, 0, 1}, {1, 0, 255}, {1, 1, 2, 0, 0, 0, 0, 0, 0}} {
		if m, ok := parseMeta(bad); ok {
			t.Errorf("%v is read as %v", bad, m)
		}
	}
	if later, ok := parseMeta(append(m.bytes(), 7)); !ok || !later.equal(m) {
		t.Error("what a later version appends is not skipped")
	}
}
