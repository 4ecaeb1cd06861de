package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/ipam"
	"wayleave.dev/podnetwork/veth"
)

// node is a node's links in memory: what a reboot takes away, and a kill does not.
type node struct {
	links map[string][]netip.Addr
	fail  bool // the next Setup
}

func (n *node) Setup(_ *os.File, l veth.Link) (net.HardwareAddr, error) {
	if n.fail {
		n.fail = false
		return nil, errors.New("no link today")
	}
	n.links[l.HostName] = l.IPs
	return net.HardwareAddr{2, 0, 0, 0, 0, 1}, nil
}

func (n *node) Teardown(name string) error { delete(n.links, name); return nil }

func (n *node) Exists(name string) bool { _, ok := n.links[name]; return ok }

func (n *node) Check(_ *os.File, l veth.Link, _ veth.Listed) error {
	if _, ok := n.links[l.HostName]; !ok {
		return errors.New("no link")
	}
	return nil
}

func (n *node) Names() ([]string, error) { return slices.Collect(maps.Keys(n.links)), nil }

func (n *node) Addresses(name string) ([]netip.Addr, error) { return n.links[name], nil }

// TestNoStepLeaksOrDoubles takes 10,000 random steps of a runtime, of crashes at any
// point and of reboots. After each no address is on two links, and every link has its
// lease; at the end, what the runtime still has is all that is leased.
func TestNoStepLeaksOrDoubles(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "leases")
	now := time.Unix(1_000_000, 0)
	n := &node{links: map[string][]netip.Addr{}}
	netns, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Close()
	var s *Server
	start := func() {
		t.Helper()
		leases := ipam.Open(dir, time.Minute, func() time.Time { return now }, nil)
		local := NodeNetwork{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/26"),
			netip.MustParsePrefix("fd00::/64")}}
		s = &Server{Leases: leases, Links: n, Node: func() (NodeNetwork, bool) { return local, true },
			Log: slog.New(slog.DiscardHandler)}
		if err := s.Reconcile(); err != nil {
			t.Fatal(err)
		}
	}
	start()
	rng := rand.New(rand.NewPCG(3, 4))
	pods := map[string]bool{} // what the runtime believes to run
	call := func(command, id string, more string) error {
		out := s.Handle(call.Request{Command: command, ContainerID: id, IfName: "eth0",
			Config: json.RawMessage(`{"cniVersion":"1.1.0","name":"n","type":"t"` + more + `}`)}, netns)
		if out.Error != nil {
			return out.Error
		}
		return nil
	}
	for step := range 10_000 {
		now = now.Add(time.Duration(rng.IntN(4000)) * time.Millisecond)
		id := fmt.Sprintf("c%d", rng.IntN(80))
		switch rng.IntN(40) {
		case 0: // the agent is killed, now and then in the middle of a line
			if err := s.Leases.Close(); err != nil {
				t.Fatal(err)
			}
			switch rng.IntN(4) {
			case 0:
				tear(t, file)
			case 1:
				damage(t, file, rng)
			}
			start()
		case 1: // the node is switched off: no pod is left
			clear(n.links)
			clear(pods)
			start()
		case 2: // the runtime collects garbage
			var valid []string
			for p := range pods {
				valid = append(valid, fmt.Sprintf(`{"containerID":%q,"ifname":"eth0"}`, p))
			}
			list := "["
			for i, v := range valid {
				if i > 0 {
					list += ","
				}
				list += v
			}
			if err := call("GC", "", `,"cni.dev/valid-attachments":`+list+"]"); err != nil {
				t.Fatalf("step %d: GC: %v", step, err)
			}
		case 3: // the file is lost
			if rng.IntN(10) == 0 {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
				start()
			}
		case 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19:
			if err := call("DEL", id, ""); err != nil {
				t.Fatalf("step %d: DEL: %v", step, err)
			}
			delete(pods, id)
		default:
			n.fail = rng.IntN(10) == 0
			if err := call("ADD", id, ""); err == nil {
				pods[id] = true
			} else if !pods[id] && len(n.links) < 50 && err.Error() != "no link today" {
				t.Fatalf("step %d: ADD with %d links: %v", step, len(n.links), err)
			}
		}
		agree(t, step, s.Leases, n)
	}
	for id := range pods {
		if err := call("DEL", id, ""); err != nil {
			t.Fatal(err)
		}
	}
	if list := s.Leases.List(); len(list) > 0 || len(n.links) > 0 {
		t.Errorf("left are the leases %v and links %v", list, n.links)
	}
}

func tear(t *testing.T, file string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(`{"add":{"container":"to`)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// damage cuts the file at any byte, or writes garbage over some of it.
func damage(t *testing.T, file string, rng *rand.Rand) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) == 0 {
		return
	}
	at := rng.IntN(len(raw))
	if rng.IntN(2) == 0 {
		raw = raw[:at]
	} else {
		for i := at; i < min(at+1+rng.IntN(300), len(raw)); i++ {
			raw[i] = byte(rng.IntN(256))
		}
	}
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// agree compares leases with links, one to one.
func agree(t *testing.T, step int, b *ipam.LeaseStore, n *node) {
	t.Helper()
	seen := map[netip.Addr]string{}
	for _, l := range b.List() {
		for _, a := range l.IPs {
			if other, ok := seen[a]; ok {
				t.Fatalf("step %d: %s is leased to %s and %s", step, a, l.Container, other)
			}
			seen[a] = l.HostLink
		}
		if ips, ok := n.links[l.HostLink]; !ok || !slices.Equal(ips, l.IPs) {
			t.Fatalf("step %d: the lease %v of %s leaks: the link has %v", step, l.IPs, l.Container, ips)
		}
	}
	for name, ips := range n.links {
		for _, a := range ips {
			if seen[a] != name {
				t.Fatalf("step %d: %s of link %s is leased to %q", step, a, name, seen[a])
			}
		}
	}
}

// Calls for one interface wait for each other, and none for ever.
func TestOneCallPerInterfaceAtATime(t *testing.T) {
	var s Server
	key := ipam.Key{Container: "a", Interface: "eth0"}
	var wg sync.WaitGroup
	inside := 0
	for range 8 {
		wg.Go(func() {
			for range 20000 {
				unlock := s.lock(key)
				inside++ // the race detector judges
				unlock()
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("a call waits for ever")
	}
	if inside != 160000 || len(s.busy) != 0 {
		t.Errorf("%d calls, %d interfaces are still remembered", inside, len(s.busy))
	}
}

// A tombstone that is cut short or garbage ends nothing and is in nobody's way: the lease stays until GC. A whole
// one ends its lease.
func TestTombstonesThatAreDamaged(t *testing.T) {
	n := &node{links: map[string][]netip.Addr{}}
	leases := ipam.Open(t.TempDir(), time.Minute, nil, nil)
	defer leases.Close()
	s := &Server{Leases: leases, Links: n, Log: slog.New(slog.DiscardHandler)}
	whole := `{"container":"c1","interface":"eth0"}`
	texts := []string{"null", "[]", "{}", "\x00\x00", `{"container":1}`}
	for i := range whole {
		texts = append(texts, whole[:i])
	}
	k := ipam.Key{Container: "c1", Interface: "eth0"}
	if _, _, err := leases.Acquire(k, ipam.LeaseRequest{HostLink: call.HostName("c1", "eth0")},
		[]netip.Prefix{netip.MustParsePrefix("10.244.1.0/26")}); err != nil {
		t.Fatal(err)
	}
	for _, text := range append(texts, whole) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "stone"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := s.Bury(dir)
		_, there := leases.Get(k)
		left, _ := os.ReadDir(dir)
		if there == (text == whole) || len(left) > 0 || text == whole && err != nil {
			t.Errorf("%q: %v, the lease is there: %t, left %v", text, err, there, left)
		}
	}
}

// blind is a node whose links cannot be listed.
type blind struct {
	*node
	isBlind bool
}

func (b *blind) Names() ([]string, error) {
	if b.isBlind {
		return nil, errors.New("no answer from the kernel")
	}
	return b.node.Names()
}

// While it is not known which addresses links have, none is given out: the next ADD looks again.
func TestNoAddressIsGivenOutUntilLinksAreKnown(t *testing.T) {
	n := &blind{&node{links: map[string][]netip.Addr{"wy1": {netip.MustParseAddr("10.244.1.2")}}}, true}
	leases := ipam.Open(t.TempDir(), time.Minute, nil, nil)
	defer leases.Close()
	local := NodeNetwork{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/26")}}
	s := &Server{Leases: leases, Links: n, Node: func() (NodeNetwork, bool) { return local, true },
		Log: slog.New(slog.DiscardHandler)}
	if err := s.Reconcile(); err == nil {
		t.Fatal("links were not listed, and that is no error")
	}
	netns, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Close()
	add := func() *types.Error {
		return s.Handle(call.Request{Command: "ADD", ContainerID: "c1", IfName: "eth0",
			Config: json.RawMessage(`{"cniVersion":"1.1.0","name":"n","type":"t"}`)}, netns).Error
	}
	if err := add(); err == nil || err.Code != types.ErrTryAgainLater {
		t.Fatalf("an address was given out: %v, leases %v", err, leases.List())
	}
	n.isBlind = false
	if err := add(); err != nil {
		t.Fatal(err)
	}
	for _, l := range leases.List() {
		if l.Container == "c1" && l.IPs[0] == netip.MustParseAddr("10.244.1.2") {
			t.Error("an address in use was given out")
		}
	}
}
