package podnetwork

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/routes"
	plan "wayleave.dev/podnetwork/wireguard"
	"wayleave.dev/podnetwork/wireguard/frames"
)

// TestEncryptedMatrix: all pods and nodes reach each other, large transfers arrive whole, and no packet between pods of
// two nodes is on the wire unencrypted.
func TestEncryptedMatrix(t *testing.T) {
	bin := plugin(t)
	for _, tc := range []struct {
		f     families
		mode  routes.Mode
		nodes bool
	}{
		{families{"IPv4", true, false}, routes.Auto, false},
		{families{"IPv6", false, true}, routes.Auto, true},
		{families{"dual", true, true}, routes.VXLAN, false},
		{families{"dual", true, true}, routes.Cloud, true},
	} {
		t.Run(fmt.Sprintf("%s %s nodes=%t", tc.f.name, tc.mode, tc.nodes), func(t *testing.T) {
			e := newEncrypted()
			e.nodes = tc.nodes
			s := newSegmentsOf(t, tc.mode, tc.f, 1500, bin, func(m *machine) { m.encrypt = e })
			w := newTap(t, s.nodes...)
			awaitSessions(t, s.nodes)
			pods := everybody(t, s, tc.mode)
			w.watch(pods...)
			for _, to := range pods[1:] {
				for _, ip := range to.ips {
					if err := fetch(pods[0].ns, ip); err != nil {
						t.Error(err)
					}
				}
			}
			w.expectNone()
			for _, m := range s.nodes {
				if c, err := m.net.PlainCounts(t.Context()); err != nil || len(c.Dropped) > 0 || c.Seen > 0 {
					t.Errorf("%s counted %+v, %v", m.name, c, err)
				}
			}
		})
	}
}

// say sends packets from a pod to another, and says whether one arrived.
func say(from *pod, to netip.Addr) bool {
	_, err := who(from.ns, netip.AddrPortFrom(to, 80))
	return err == nil
}

// TestStrictEncryptionFailsClosed: while the key of a node is not known, when others flush the rules or delete a
// device, and while no agent runs, no packet of a pod leaves unencrypted. What is not sent is counted and named.
func TestStrictEncryptionFailsClosed(t *testing.T) {
	e := newEncrypted()
	e.board.hide("node2")
	c := newEncryptedCluster(t, e, routes.Direct)
	a, d := c.nodes[0].mustAdd("a"), c.nodes[1].mustAdd("d")
	tell(a.ns)
	tell(d.ns)
	w := newTap(t, c.nodes...)
	w.watch(a, d)
	for f := range 2 {
		if say(a, d.ips[f]) {
			t.Error("it went through without a key")
		}
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if n, err := c.nodes[0].dropped("node2"); err != nil || n.NoKey == 0 {
			return fmt.Errorf("counted are %+v, %v", n, err)
		}
		if s := c.nodes[0].net.Encryption(); s == nil || s.Peers[0].Note != "it has published no key" {
			return fmt.Errorf("status: %+v", s)
		}
		return nil
	})
	w.expectNone()

	e.board.show("node2")
	for f := range 2 {
		expectSeen(t, a.ns, d.ips[f], a.ips[f])
	}
	// The routes alone, and the rules alone, keep plain packets in.
	closed := func(what string) {
		t.Helper()
		for f := range 2 {
			say(a, d.ips[f])
			say(d, a.ips[f])
		}
		w.expectNone()
		if t.Failed() {
			t.Fatal(what)
		}
	}
	c.nodes[0].stop()
	closed("without an agent")
	for _, args := range [][]string{{"nft", "flush", "ruleset"}, {"ip", "link", "del", plan.Device(0)},
		{"ip", "link", "del", plan.Device(1)}} {
		c.nodes[0].ns.Run(args[0], args[1:]...)
		closed("without an agent, after " + strings.Join(args, " "))
	}
	c.nodes[0].start(c.store)
	for f := range 2 {
		expectSeenWithin(t, 20*time.Second, a.ns, d.ips[f], a.ips[f])
	}
	c.nodes[0].stop()
	for _, family := range []string{"-4", "-6"} {
		c.nodes[0].ns.Run("sh", "-c", "ip "+family+" rule del pref 8700")
	}
	closed("without an agent, after ip rule del")
	if n, err := c.nodes[0].dropped("node2"); err != nil || n.Out == 0 {
		t.Errorf("counted are %+v, %v", n, err)
	}
	c.nodes[0].start(c.store)
	c.nodes[0].ns.Run("nft", "flush", "ruleset")
	testnet.Eventually(t, 5*time.Second, func() error {
		if out := c.nodes[0].ns.Run("nft", "list", "tables"); !strings.Contains(out, plan.TableName) {
			return fmt.Errorf("the rules are not repaired: %s", out)
		}
		return nil
	})
	// A neighbour that does not encrypt is not taken for a pod.
	expectSeenWithin(t, 20*time.Second, a.ns, d.ips[0], a.ips[0])
	before, err := c.nodes[0].dropped("node2")
	if err != nil {
		t.Fatal(err)
	}
	c.outside.Run("ip", "addr", "add", d.ips[0].String()+"/32", "dev", "lo")
	c.outside.Run("ip", "route", "add", a.ips[0].String(), "via", "172.30.0.11")
	_, _ = c.outside.DialFrom("tcp", netip.AddrPortFrom(d.ips[0], 0).String(), netip.AddrPortFrom(a.ips[0],
		80).String(), time.Second)
	after, err := c.nodes[0].dropped("node2")
	if err != nil || after.In == before.In {
		t.Errorf("a plain packet from outside was not dropped: %+v, %v", after, err)
	}
	if seen, _ := c.nodes[0].net.encryption.witness.Seen(); seen == 0 {
		t.Error("the witness has not seen the plain packet from outside")
	}
}

// TestNodesThatAreDeletedSendNothingPlain: while the object of a Node is gone, its pods and those of other nodes still
// run, and nothing between them leaves unencrypted, from either side. They reach each other once it is back.
func TestNodesThatAreDeletedSendNothingPlain(t *testing.T) {
	c := newEncryptedCluster(t, newEncrypted(), routes.Direct)
	a, d := c.nodes[0].mustAdd("a"), c.nodes[1].mustAdd("d")
	w := newTap(t, c.nodes...)
	w.watch(a, d)
	awaitSessions(t, c.nodes)
	awaitRoutes(t, a, d)
	tell(a.ns)
	node, _ := c.store.Snapshot().Node("node2")
	if err := c.store.Write(func(w *model.Writer) {
		w.Delete(model.NodeKind, model.Name{Name: "node2"})
	}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for f := range 2 {
			for from, to := range map[*pod]*pod{a: d, d: a} { // a SYN that nobody answers
				_, _ = from.ns.Dial("tcp", netip.AddrPortFrom(to.ips[f], 80).String(), 50*time.Millisecond)
			}
		}
	}
	w.expectNone()
	if s, err := c.nodes[1].net.Config.Encryption.Devices.Get(t.Context(), plan.Device(0)); err != nil || s == nil ||
		len(s.Peers) != 1 {
		t.Errorf("the node whose object is gone has given up its sessions: %+v, %v", s, err)
	}
	c.put(node)
	for f := range 2 {
		expectSeenWithin(t, 30*time.Second, a.ns, d.ips[f], a.ips[f])
		expectSeenWithin(t, 30*time.Second, d.ns, a.ips[f], d.ips[f])
	}
	w.expectNone()
}

func expectSeenWithin(t *testing.T, within time.Duration, from *testnet.NS, to, want netip.Addr) {
	t.Helper()
	testnet.Eventually(t, within, func() error {
		seen, err := who(from, netip.AddrPortFrom(to, 80))
		if err == nil && seen != want {
			err = fmt.Errorf("%s saw %s, want %s", to, seen, want)
		}
		return err
	})
}

// newRotatingCluster has two nodes with a pod each, whose keys are replaced soon, and a tap that watches the pods.
func newRotatingCluster(t *testing.T) (e *encrypted, c *cluster, a, d *pod, w *tap) {
	t.Helper()
	e = newEncrypted()
	e.period = 24 * time.Second
	c = newEncryptedCluster(t, e, routes.Direct)
	a, d = c.nodes[0].mustAdd("a"), c.nodes[1].mustAdd("d")
	w = newTap(t, c.nodes...)
	w.watch(a, d)
	awaitSessions(t, c.nodes)
	awaitRoutes(t, a, d)
	return e, c, a, d, w
}

// TestKeysRotateUnderTraffic: within two periods all keys are others, nothing is lost, and nothing is plain.
func TestKeysRotateUnderTraffic(t *testing.T) {
	e, _, a, d, w := newRotatingCluster(t)
	keys := func() map[string]plan.Published { k, _, _ := e.board.reader("").Nodes(); return k }
	first := keys()
	metered(t, a, []*pod{d}, 7000, func() {
		testnet.Eventually(t, 3*e.period, func() error {
			for name, p := range keys() {
				for i, key := range p.Keys {
					if old := first[name]; slices.Contains(old.Keys[:], key) {
						return fmt.Errorf("device %d of %s still has its first key", i, name)
					}
				}
			}
			return nil
		})
		time.Sleep(e.period / 2) // until all send by the device with the last key
	})
	w.expectNone()
}

// TestANodeWithoutItsAgentKeepsItsSessions: an agent that does not run follows no rotation, and other nodes keep the
// device by which its node sends. Nothing is lost, and the agent catches up.
func TestANodeWithoutItsAgentKeepsItsSessions(t *testing.T) {
	e, c, a, d, w := newRotatingCluster(t)
	metered(t, a, []*pod{d}, 7000, func() {
		c.nodes[1].stop()
		used := plan.Device(0)
		if strings.Contains(wayTo(c.nodes[1], d.ips[0], a.ips[0]), plan.Device(1)) {
			used = plan.Device(1)
		}
		var said string
		for end := time.Now().Add(3 * e.period); ; time.Sleep(100 * time.Millisecond) {
			said = fmt.Sprint(c.nodes[0].problemsOf("encryption rotation"))
			if strings.Contains(said, "the key of "+used+" is kept: node node2 still uses the device") {
				break
			}
			if time.Now().After(end) {
				t.Errorf("node2 sends by %s; node1 reports %s: %+v", used, said, c.nodes[0].net.Encryption())
				break
			}
		}
		time.Sleep(2 * time.Second)
		c.nodes[1].start(c.store)
		awaitSessions(t, c.nodes)
		time.Sleep(2 * time.Second)
	})
	w.expectNone()
	testnet.Eventually(t, 2*e.period, func() error {
		if list := c.nodes[0].problemsOf("encryption rotation"); len(list) > 0 {
			return fmt.Errorf("still reported: %v", list)
		}
		return nil
	})
}

// TestAHandshakeWithAnEarlierKeyIsNoSession: a key that was replaced has ended the sessions of its device.
func TestAHandshakeWithAnEarlierKeyIsNoSession(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	period := time.Hour
	current := plan.Current(now, period)
	for _, tc := range []struct {
		replaced time.Time
		want     int
	}{{time.Time{}, current}, {ago(2 * time.Minute), current}, {ago(30 * time.Second), 1 - current}} {
		e := &encryption{Encryption: Encryption{Strict: true, Period: period, Devices: &wireguard.Kernel{}},
			n: &Network{Config: Config{Node: "node1"}}}
		e.replaced[current] = tc.replaced
		store, err := model.NewStore()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		if err := store.Write(func(w *model.Writer) { w.PutNode(&model.Node{Name: "node2"}) }); err != nil {
			t.Fatal(err)
		}
		var peers [plan.Devices]plan.Peers
		var have [plan.Devices]*wireguard.State
		for i := range plan.Devices {
			key := wireguard.Key{byte(i + 1)}
			peers[i].Nodes = map[wireguard.Key]string{key: "node2"}
			have[i] = &wireguard.State{Peers: []wireguard.PeerState{{Peer: wireguard.Peer{Public: key},
				Handshake: ago(time.Minute)}}}
		}
		if got := e.decide(store.Snapshot(), peers, have, now).Routes.Via["node2"]; got != plan.Device(tc.want) {
			t.Errorf("the key was replaced at %s: node2 is reached by %s, want %s", tc.replaced, got,
				plan.Device(tc.want))
		}
	}
}

// children are the processes that encrypt on a node.
func children(t *testing.T, m *machine) (pids []int) {
	t.Helper()
	if m.net.Config.Encryption.Devices.Kind() == "kernel" {
		t.Skip("the kernel has WireGuard")
	}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	want, _ := os.Readlink(m.ns.Path())
	for _, f := range files {
		raw, _ := os.ReadFile(f)
		ns, _ := os.Readlink(filepath.Join(filepath.Dir(f), "ns/net"))
		if args := bytes.Split(raw, []byte{0}); len(args) > 1 && string(args[1]) == frames.Process && ns == want {
			var pid int
			_, _ = fmt.Sscan(filepath.Base(filepath.Dir(f)), &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestTheAgentEndsWhileItEncrypts: nothing is lost, and nothing is plain.
func TestTheAgentEndsWhileItEncrypts(t *testing.T) {
	e := newEncrypted()
	c := newEncryptedCluster(t, e, routes.VXLAN)
	a, d := c.nodes[0].mustAdd("a"), c.nodes[1].mustAdd("d")
	w := newTap(t, c.nodes...)
	w.watch(a, d)
	awaitSessions(t, c.nodes)
	awaitRoutes(t, a, d)
	metered(t, a, []*pod{d}, 7000, func() {
		for range 2 {
			for _, m := range c.nodes {
				m.stop()
				time.Sleep(500 * time.Millisecond)
				m.start(c.store)
			}
		}
	})
	w.expectNone()
}

// TestTheProcessThatEncryptsIsKilled: packets are dropped and never plain, and the process is there again soon.
func TestTheProcessThatEncryptsIsKilled(t *testing.T) {
	e := newEncrypted()
	c := newEncryptedCluster(t, e, routes.Direct)
	a, d := c.nodes[0].mustAdd("a"), c.nodes[1].mustAdd("d")
	tell(d.ns)
	w := newTap(t, c.nodes...)
	w.watch(a, d)
	awaitSessions(t, c.nodes)
	for f := range 2 {
		expectSeen(t, a.ns, d.ips[f], a.ips[f])
	}
	pids := children(t, c.nodes[0])
	if len(pids) != plan.Devices {
		t.Fatalf("processes %v, want %d", pids, plan.Devices)
	}
	keys, _, _ := e.board.reader("").Nodes()
	for range 3 {
		for _, pid := range children(t, c.nodes[0]) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		say(a, d.ips[0])
		for f := range 2 {
			expectSeenWithin(t, 20*time.Second, a.ns, d.ips[f], a.ips[f])
		}
	}
	w.expectNone()
	if now, _, _ := e.board.reader("").Nodes(); now["node1"] != keys["node1"] {
		t.Error("the keys are others, though the agent had them")
	}
}

// TestEncryptionIsSwitchedUnderTraffic: off, preferred, strict and back, node by node, as rolling restarts do it.
// Nothing is lost. In the end nothing is left.
func TestEncryptionIsSwitchedUnderTraffic(t *testing.T) {
	e := newEncrypted()
	e.strict = false
	c := newEncryptedCluster(t, e, routes.Auto)
	a, d := c.nodes[0].mustAdd("a"), c.nodes[1].mustAdd("d")
	for i, step := range []struct{ preferred, strict bool }{{true, false}, {false, true}, {true, false}, {}} {
		metered(t, a, []*pod{d}, uint16(7000+i), func() {
			for _, m := range c.nodes {
				m.stop()
				e.preferred, e.strict = step.preferred, step.strict
				m.start(c.store)
			}
			if step.preferred || step.strict {
				awaitSessions(t, c.nodes)
			}
		})
		if t.Failed() {
			t.Fatalf("step %+v", step)
		}
	}
	testnet.Eventually(t, 20*time.Second, func() error {
		for _, m := range c.nodes {
			if out := m.ns.Run("sh", "-c", "ip link; nft list tables; ip rule; ip -6 rule"); strings.Contains(out,
				"wayleave-wg") || strings.Contains(out, plan.TableName) || strings.Contains(out, "lookup 87") {
				return fmt.Errorf("%s: %s", m.name, out)
			}
		}
		return nil
	})
}

// TestUninstallRemovesEncryption removes everything, and says before what is there.
func TestUninstallRemovesEncryption(t *testing.T) {
	e := newEncrypted()
	c := newEncryptedCluster(t, e, routes.Direct)
	m := c.nodes[0]
	awaitSessions(t, c.nodes)
	m.stop()
	config := m.config(c.store)
	in := func(fn func() error) { m.ns.Must(fn) }
	in(func() error {
		left, err := Remains(t.Context(), config)
		for _, want := range []string{"link " + plan.Device(0), "link " + plan.Device(1), plan.TableName} {
			if !strings.Contains(strings.Join(left, "\n"), want) {
				t.Errorf("what is left does not name %s: %q", want, left)
			}
		}
		return err
	})
	in(func() error { return Uninstall(t.Context(), config) })
	in(func() error {
		left, err := Remains(t.Context(), config)
		if len(left) > 0 {
			t.Errorf("left is %q", left)
		}
		return err
	})
	if config.Encryption.Devices.Kind() == "kernel" {
		return // it has no processes
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if pids := children(t, m); len(pids) > 0 {
			return fmt.Errorf("processes %v still run", pids)
		}
		return nil
	})
}

// TestStrangersReachNoDevice: datagrams to the ports from an address that is no node's are dropped before WireGuard.
func TestStrangersReachNoDevice(t *testing.T) {
	c := newEncryptedCluster(t, newEncrypted(), routes.Direct)
	awaitSessions(t, c.nodes)
	m := c.nodes[0]
	before := dropsOfStrangers(t, m)
	for _, to := range []string{"172.30.0.11", "[fd00:30::11]"} {
		for port := 51871; port <= 51872; port++ {
			conn, err := c.outside.Dial("udp", fmt.Sprintf("%s:%d", to, port), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			for range 100 {
				if _, err := conn.Write(make([]byte, 148)); err != nil {
					t.Fatal(err)
				}
			}
			_ = conn.Close()
		}
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if n := dropsOfStrangers(t, m) - before; n < 400 {
			return fmt.Errorf("%d packets of 400 were dropped", n)
		}
		return nil
	})
	awaitSessions(t, c.nodes)
}

// dropsOfStrangers is what the rules of the chain outer-in count.
func dropsOfStrangers(t *testing.T, m *machine) (sum int) {
	t.Helper()
	for _, family := range []string{"ip", "ip6"} {
		for line := range strings.SplitSeq(m.ns.Run("nft", "list", "chain", family, plan.TableName, "outer-in"), "\n") {
			if _, count, ok := strings.Cut(line, "counter packets "); ok {
				var n int
				_, _ = fmt.Sscan(count, &n)
				sum += n
			}
		}
	}
	return sum
}
