package speaker

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer"
	"wayleave.dev/loadbalancer/l2"
)

// Exactly one node answers for each address, in both families, as arping and ndisc6 see it.
func TestExactlyOneNodeAnswers(t *testing.T) {
	w := newCluster(t, 3)
	addrs := w.vips(2)
	w.start()
	w.settled(addrs)
	for _, a := range addrs {
		owner, err := w.owner(a)
		if err != nil {
			t.Fatal(err)
		}
		// An announcement that comes by meanwhile looks like a second answer of the same node.
		if macs := slices.Compact(w.answers(a)); len(macs) != 1 {
			t.Errorf("one question for %s is answered by %v", a, macs)
		}
		if got := w.one(a, 5*time.Second); got != owner {
			t.Errorf("%s is answered by %s, and %s says that it owns it", a, got.name, owner.name)
		}
	}
}

// failOver is the bound for another node to answer.
const failOver = 2 * time.Second

// moves waits until another node than was answers for the address, within the bound after from, when the machine's
// stalls began to count.
func (w *cluster) moves(r *record, a netip.Addr, from time.Time, stalls *testnet.Stalls, was *node) {
	w.t.Helper()
	var took time.Duration
	testnet.Eventually(w.t, 30*time.Second, func() (err error) {
		took, err = r.since(a, from, was.mac)
		return err
	})
	w.t.Logf("%s moved away from %s in %s", a, was.name, took.Round(time.Millisecond))
	if late := stalls.Total(); took > failOver+late {
		w.t.Errorf("%s moved away from %s after %s; %s and %s of stalls are allowed", a, was.name, took, failOver, late)
	}
}

// never checks that two nodes did not answer for an address for longer than the bound.
func (w *cluster) never(r *record, addrs []netip.Addr) {
	w.t.Helper()
	testnet.Eventually(w.t, 10*time.Second, func() error {
		for _, a := range addrs {
			if r.count(a) < 20 {
				return fmt.Errorf("tcpdump saw only %d answers for %s, too few to judge", r.count(a), a)
			}
		}
		return nil
	})
	r.stop()
	for _, a := range addrs {
		if d := r.doubles(a); d > l2.Bound {
			w.t.Errorf("two nodes answered for %s for %s; %s is the bound", a, d, l2.Bound)
		}
	}
}

// The owner's agent is killed, its process hangs, its link goes, it is drained: another node answers within
// the bound, and never two for longer than theirs. A node that is back leaves the addresses
// where they are until it has settled, and then has its own again.
func TestAnotherNodeTakesOver(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*testing.T, *cluster, *node)
		back func(*cluster, *node)
	}{
		{"killed", func(_ *testing.T, _ *cluster, n *node) { n.kill() },
			func(w *cluster, n *node) { n.start(w.state) }},
		{"hung", func(t *testing.T, _ *cluster, n *node) {
			if err := unix.Kill(n.now().PID, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}, nil},
		{"link down", func(_ *testing.T, _ *cluster, n *node) { n.ns.Run("ip", "link", "set", "eth0", "down") },
			func(_ *cluster, n *node) {
				n.ns.Run("ip", "link", "set", "eth0", "up")
				n.ns.Run("ip", "address", "replace", n.addr[1].String()+"/64", "dev", "eth0", "nodad")
			}},
		{"drained", func(t *testing.T, _ *cluster, n *node) {
			n.Tell(command{Drain: true})
			if text := <-n.drained; text != "" {
				t.Errorf("drain: %s", text)
			}
			testnet.Eventually(t, 10*time.Second, func() error {
				if owned := n.now().VIPs; len(owned) != 0 {
					return fmt.Errorf("after the drain it owns %v", owned)
				}
				return nil
			})
		}, func(w *cluster, n *node) { n.kill(); n.start(w.state) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newCluster(t, 3)
			addrs := w.vips(4)
			w.start()
			w.settled(addrs)
			owner, err := w.owner(addrs[0])
			if err != nil {
				t.Fatal(err)
			}
			// An address of each family that this node owns.
			var watched []netip.Addr
			for _, is4 := range []bool{true, false} {
				i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == is4 && owner.owns(a) })
				if i >= 0 {
					watched = append(watched, addrs[i])
				}
			}
			r := w.record(watched...)
			testnet.Eventually(t, 10*time.Second, func() error {
				for _, a := range watched {
					if r.count(a) < 3 {
						return fmt.Errorf("%s is not answered", a)
					}
				}
				return nil
			})
			from, stalls := time.Now(), testnet.WatchStalls(t)
			c.end(t, w, owner)
			for _, a := range watched {
				w.moves(r, a, from, stalls, owner)
			}
			if c.back != nil {
				c.back(w, owner)
			}
			w.settled(addrs)
			for _, a := range watched {
				if !owner.owns(a) {
					t.Errorf("%s is back and settled, and does not own %s", owner.name, a)
				}
				if got := w.one(a, 5*time.Second); got != owner {
					t.Errorf("%s is back, but %s answers for %s", owner.name, got.name, a)
				}
			}
			w.never(r, watched)
		})
	}
}

// A node that comes back says that it is not willing until it has settled: addresses move once.
func TestANodeThatIsBackWaits(t *testing.T) {
	w := newCluster(t, 2)
	addrs := w.vips(4)
	w.state.Settle = 3 * time.Second
	w.start()
	w.settled(addrs)
	first := w.nodes[0]
	i := slices.IndexFunc(addrs, first.owns)
	first.kill()
	testnet.Eventually(t, 10*time.Second, func() error {
		if !w.nodes[1].owns(addrs[i]) {
			return fmt.Errorf("%s does not own %s", w.nodes[1].name, addrs[i])
		}
		return nil
	})
	first.start(w.state)
	started := time.Now()
	testnet.Eventually(t, 20*time.Second, func() error {
		if !first.owns(addrs[i]) {
			return fmt.Errorf("%s does not own %s", first.name, addrs[i])
		}
		return nil
	})
	if took := time.Since(started); took < w.state.Settle {
		t.Errorf("it took its address after %s; %s are to be waited", took, w.state.Settle)
	}
}

// cut keeps heartbeats from coming and going, while all else of the network works.
func (n *node) cut() {
	n.t.Helper()
	n.ns.Run("nft", "table inet cut { chain in { type filter hook input priority 0; meta l4proto { tcp, udp } th "+
		"dport 7946 drop; meta l4proto { tcp, udp } th sport 7946 drop; }; }")
}

// Heartbeats are cut, by a firewall for example, and the nodes still share a network: each thinks
// that it is alone and takes everything. Two answer for an address for no longer than the bound,
// and then the better one does.
func TestSplitBrain(t *testing.T) {
	for _, c := range []struct {
		name   string
		before bool // the nodes never heard of each other
	}{{"later", false}, {"from the start", true}} {
		t.Run(c.name, func(t *testing.T) {
			w := newCluster(t, 3)
			addrs := w.vips(3)
			if c.before {
				for _, n := range w.nodes {
					n.cut()
				}
			}
			w.start()
			if !c.before {
				w.settled(addrs)
			}
			r := w.record(addrs[:4]...)
			if !c.before {
				for _, n := range w.nodes {
					n.cut()
				}
			}
			alone := func() error {
				for _, n := range w.nodes {
					r := n.now()
					if !r.Ready {
						return fmt.Errorf("%s is not ready", n.name)
					}
					for _, m := range r.Members {
						if m.Live {
							return fmt.Errorf("%s sees %s", n.name, m.Name)
						}
					}
					if len(r.Disputes) == 0 {
						return fmt.Errorf("%s reports no dispute: %+v", n.name, r)
					}
				}
				return nil
			}
			testnet.Eventually(t, 20*time.Second, alone)
			// The silence of the worse ones is over, had it not been renewed.
			end := time.Now().Add(l2.Silence + l2.Bound)
			for time.Now().Before(end) {
				for _, a := range addrs {
					w.one(a, 5*time.Second)
				}
			}
			for _, a := range addrs {
				best := loadbalancer.Order(a, w.names())[0]
				if got := w.one(a, 5*time.Second); got.name != best {
					t.Errorf("%s is answered by %s; %s is the best for it", a, got.name, best)
				}
			}
			for _, n := range w.nodes {
				if f := n.now().Foreign; len(f) > 0 {
					t.Errorf("%s takes a node for a foreign machine: %+v", n.name, f)
				}
			}
			w.never(r, addrs[:4])
			for _, n := range w.nodes {
				n.ns.Run("nft", "delete table inet cut")
			}
			w.settled(addrs)
			testnet.Eventually(t, 10*time.Second, func() error {
				for _, n := range w.nodes {
					if d := n.now().Disputes; len(d) > 0 {
						return fmt.Errorf("%s still reports %+v", n.name, d)
					}
				}
				return nil
			})
		})
	}
}

// 100 addresses are owned evenly. The kernel of the outside machine decides which node has which.
func TestAHundredAddressesAreSpread(t *testing.T) {
	w := newCluster(t, 3)
	addrs := w.vips(50)
	w.start()
	w.settled(addrs)
	for _, a := range addrs {
		c, err := w.outside.Dial("udp", netip.AddrPortFrom(a, 9).String(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("x")) // has the kernel ask for the address
		c.Close()
	}
	count := map[string]int{}
	testnet.Eventually(t, 20*time.Second, func() error {
		clear(count)
		var neighbours []struct{ Dst, LLAddr string }
		if err := json.Unmarshal([]byte(w.outside.Run("ip", "-j", "neighbour", "show", "dev", "eth0")),
			&neighbours); err != nil {
			t.Fatal(err)
		}
		at := map[string]string{}
		for _, n := range neighbours {
			at[n.Dst] = n.LLAddr
		}
		for _, a := range addrs {
			owner, err := w.owner(a)
			if err != nil {
				return err
			}
			if at[a.String()] != owner.mac {
				return fmt.Errorf("%s is at %q, its owner %s at %s", a, at[a.String()], owner.name, owner.mac)
			}
			count[owner.name]++
		}
		return nil
	})
	for _, n := range w.nodes {
		if c := count[n.name]; c < 22 || c > 44 {
			t.Errorf("%s has %d of 100 addresses", n.name, c)
		}
	}
}

// A machine that wants an address of ours finds by duplicate address detection that it is taken,
// and we go on.
func TestDuplicateAddressDetectionFails(t *testing.T) {
	w := newCluster(t, 2)
	addrs := w.vips(1)
	v6 := addrs[1]
	w.start()
	w.settled(addrs)
	w.outside.Sysctl("net/ipv6/conf/eth0/accept_dad", "1")
	w.outside.Run("ip", "address", "add", v6.String()+"/64", "dev", "eth0")
	testnet.Eventually(t, 10*time.Second, func() error {
		if out := w.outside.Run("ip", "-6", "address", "show", "dev", "eth0"); !strings.Contains(out, "dadfailed") {
			return fmt.Errorf("the kernel outside gives it to itself: %s", out)
		}
		return nil
	})
	w.outside.Run("ip", "address", "del", v6.String()+"/64", "dev", "eth0")
	w.one(v6, 5*time.Second)
	// The same in IPv4 (RFC 5227): a probe is from 0.0.0.0.
	if out, err := w.outside.Try("arping", "-d", "-0", "-c", "1", "-w", "2", "-I", "eth0",
		addrs[0].String()); !strings.Contains(out, w.nodes[0].mac) && !strings.Contains(out, w.nodes[1].mac) {
		t.Errorf("a probe is not answered: %v: %s", err, out)
	}
}

// A machine that is no node says that it has an address of ours: that is reported, by its MAC,
// and we go on.
func TestAForeignMachineIsReported(t *testing.T) {
	w := newCluster(t, 2)
	addrs := w.vips(1)
	w.start()
	w.settled(addrs)
	owner, err := w.owner(addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	// Nobody answers to that, so arping says that it failed.
	_, _ = w.outside.Try("arping", "-U", "-c", "3", "-W", "0.1", "-I", "eth0", "-S", addrs[0].String(),
		addrs[0].String())
	testnet.Eventually(t, 10*time.Second, func() error {
		for _, f := range owner.now().Foreign {
			if f.Addr == addrs[0] && f.MAC == "02:00:00:00:00:64" && f.Interface == "eth0" && f.Count > 0 {
				return nil
			}
		}
		return fmt.Errorf("%+v", owner.now().Foreign)
	})
	if got := w.one(addrs[0], 5*time.Second); got != owner {
		t.Errorf("%s answers, %s did", got.name, owner.name)
	}
}

// The process has no capability and cannot get one; it ends with its agent, however that ends.
func TestTheProcessHasNoRightsAndEndsWithItsAgent(t *testing.T) {
	w := newCluster(t, 1)
	addrs := w.vips(1)
	w.start()
	w.settled(addrs)
	pid := w.nodes[0].now().PID
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
		"CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want+"\n") {
			t.Errorf("the process is not %q:\n%s", want, status)
		}
	}
	w.nodes[0].kill()
	testnet.Eventually(t, 5*time.Second, func() error {
		if err := unix.Kill(pid, 0); err == nil {
			if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil &&
				!strings.Contains(string(raw), ") Z ") {
				return fmt.Errorf("process %d lives", pid)
			}
		}
		return nil
	})
}

// A process that follows at once, as in an upgrade, moves no address: the others are not told
// of the end, and it does not wait to settle.
func TestAHandoverMovesNothing(t *testing.T) {
	w := newCluster(t, 3)
	addrs := w.vips(4)
	w.start()
	w.settled(addrs)
	first := w.nodes[0]
	before := map[*node]uint64{}
	for _, n := range w.nodes[1:] {
		before[n] = n.now().Counters.Takeovers
	}
	// The next process waits for the port of heartbeats, and holds nothing before it has it.
	state := w.state
	state.Settle = 0
	next := &node{t: t, name: first.name, ns: first.ns, mac: first.mac, addr: first.addr}
	next.start(state)
	testnet.Eventually(t, 10*time.Second, func() error {
		if r := next.now(); !strings.Contains(r.Heartbeats, "in use") || len(r.VIPs) > 0 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	first.Tell(command{Handover: true})
	<-first.Done
	w.nodes[0] = next
	w.settled(addrs)
	for n, b := range before {
		if after := n.now().Counters.Takeovers; after != b {
			t.Errorf("%s took %d addresses", n.name, after-b)
		}
	}
}

// Frames that make no sense change nothing.
func TestGarbageChangesNothing(t *testing.T) {
	w := newCluster(t, 1)
	addrs := w.vips(1)
	w.start()
	w.settled(addrs)
	n := w.nodes[0]
	before := n.now()
	w.outside.Must(func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		random := rand.New(rand.NewPCG(1, 2))
		for i := range 3000 {
			frame := make([]byte, 14+random.IntN(120))
			for j := range frame {
				frame[j] = byte(random.Uint32())
			}
			copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
			// ARP, IPv6 that looks like a neighbour solicitation, and others.
			copy(frame[12:], [][]byte{{0x08, 0x06}, {0x86, 0xdd}, {0x08, 0x00}, {0x88, 0xcc}, {0, 10}}[i%5])
			if i%10 == 1 && len(frame) > 60 {
				frame[14], frame[20], frame[21], frame[54], frame[55] = 0x60, 58, 255, 135, 0
			}
			if i%10 == 0 && len(frame) > 22 {
				copy(frame[14:], []byte{0, 1, 8, 0, 6, 4, 0, 1})
			}
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index, Halen: 6}); err != nil {
				return err
			}
		}
		return nil
	})
	testnet.Eventually(t, 10*time.Second, func() error {
		if n.now().Counters.Ignored == 0 {
			return fmt.Errorf("no frame was ignored: %+v", n.now())
		}
		return nil
	})
	for _, a := range addrs {
		w.one(a, 5*time.Second)
	}
	if after := n.now(); after.PID != before.PID || after.Restarts != before.Restarts {
		t.Errorf("the process was started again: %+v", after)
	}
}

// Addresses come and go with the state, and an address that may no longer be answered here
// moves at once.
func TestTheWholeStateIsSet(t *testing.T) {
	w := newCluster(t, 2)
	addrs := w.vips(2)
	w.start()
	w.settled(addrs)
	owner, err := w.owner(addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	other := w.nodes[0]
	if other == owner {
		other = w.nodes[1]
	}
	w.state.VIPs = slices.Clone(w.state.VIPs)[:2]
	w.state.VIPs[0].Eligible = []string{other.name}
	for _, n := range w.nodes {
		n.set(w.state)
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if got, err := w.owner(addrs[0]); err != nil || got != other {
			return fmt.Errorf("%s does not own %s alone: %v", other.name, addrs[0], err)
		}
		for _, a := range addrs[2:] {
			if owner.owns(a) || other.owns(a) {
				return fmt.Errorf("%s is gone and owned", a)
			}
		}
		return nil
	})
	if got := w.one(addrs[0], 5*time.Second); got != other {
		t.Errorf("%s answers", got.name)
	}
	for _, a := range addrs[2:] {
		if macs := w.answers(a); len(macs) > 0 {
			t.Errorf("%s is gone, and answered by %v", a, macs)
		}
	}
}

// The solicited-node group of an address is joined on every node, also where it is not answered,
// and left when the address goes.
func TestTheGroupsAreJoined(t *testing.T) {
	w := newCluster(t, 2)
	addrs := w.vips(1)
	w.start()
	w.settled(addrs)
	group := "ff02::1:ff00:150"
	joined := func(want bool) {
		t.Helper()
		testnet.Eventually(t, 5*time.Second, func() error {
			for _, n := range w.nodes {
				if out := n.ns.Run("ip", "-6", "maddress", "show", "dev", "eth0"); strings.Contains(out,
					group) != want {
					return fmt.Errorf("%s: in %s is %t, want %t:\n%s", n.name, group, !want, want, out)
				}
			}
			return nil
		})
	}
	joined(true)
	w.state.VIPs = w.state.VIPs[:1]
	for _, n := range w.nodes {
		n.set(w.state)
	}
	joined(false)
}
