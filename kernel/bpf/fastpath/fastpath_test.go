package fastpath

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// rig is a node with pods a and b, whose links have the program, and a neighbour node by eth0.
type rig struct {
	t           testing.TB
	node, far   *testnet.NS
	a, b, c     *testnet.NS
	kernel      *Kernel
	addr, addr6 map[*testnet.NS]netip.Addr
}

const gateway, gateway6 = "169.254.1.1", "fe80::1"

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, node: testnet.New(t, "node"), far: testnet.New(t, "far"), addr: map[*testnet.NS]netip.Addr{},
		addr6: map[*testnet.NS]netip.Addr{}}
	r.node.Router()
	r.far.Router()
	testnet.Veth(r.node, "eth0", r.far, "eth0")
	r.node.Addr("eth0", "172.30.0.1/24")
	r.far.Addr("eth0", "172.30.0.2/24")
	r.node.Addr("eth0", "fd00:30::1/64")
	r.far.Addr("eth0", "fd00:30::2/64")
	r.a, r.b = r.pod(r.node, 1, 1), r.pod(r.node, 1, 2)
	r.c = r.pod(r.far, 2, 3)
	r.node.Route("10.244.2.0/24", "172.30.0.2")
	r.node.Route("fd00:244:0:2::/64", "fd00:30::2")
	r.far.Route("10.244.1.0/24", "172.30.0.1")
	r.far.Route("fd00:244:0:1::/64", "fd00:30::1")
	// The rule has connection tracking work.
	r.node.Run("nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; policy accept; }; "+
		"add rule inet t f ct state established counter accept; add rule inet t f ct state invalid counter drop")
	r.node.Sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1")
	r.kernel = &Kernel{NSFD: r.node.FD()}
	if err := r.kernel.Possible(); err != nil {
		if errors.Is(err, ErrUnsupported) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.kernel.Remove(t.Context()) })
	return r
}

// pod makes a pod of a node as podnetwork/veth does.
func (r *rig) pod(node *testnet.NS, subnet, i int) *testnet.NS {
	p := testnet.New(r.t, fmt.Sprintf("pod%d", i))
	link := fmt.Sprintf("wl%d", i)
	testnet.Veth(p, "eth0", node, link)
	addr, addr6 := fmt.Sprintf("10.244.%d.%d", subnet, i), fmt.Sprintf("fd00:244:0:%d::%d", subnet, i)
	r.addr[p], r.addr6[p] = netip.MustParseAddr(addr), netip.MustParseAddr(addr6)
	podMAC, nodeMAC := fmt.Sprintf("0a:57:00:00:00:0%d", i), "ee:57:4c:00:00:01"
	p.Run("ip", "link", "set", "eth0", "address", podMAC)
	node.Run("ip", "link", "set", link, "address", nodeMAC)
	p.Addr("eth0", addr+"/32")
	p.Addr("eth0", addr6+"/128")
	p.Run("ip", "route", "add", gateway, "dev", "eth0")
	for j, gw := range []string{gateway, gateway6} {
		p.Run("ip", "neigh", "add", gw, "lladdr", nodeMAC, "dev", "eth0", "nud", "permanent")
		p.Run("ip", []string{"-4", "-6"}[j], "route", "add", "default", "via", gw, "dev", "eth0")
		own := []string{addr + "/32", addr6 + "/128"}[j]
		node.Run("ip", []string{"-4", "-6"}[j], "route", "add", own, "dev", link)
		node.Run("ip", "neigh", "add", []string{addr, addr6}[j], "lladdr", podMAC, "dev", link, "nud", "permanent")
	}
	return p
}

func (r *rig) state() State {
	return State{Uplinks: []string{"eth0", "no-such-link"}, Pods: []Pod{
		{Link: "wl1", Addrs: []netip.Addr{r.addr[r.a], r.addr6[r.a]}},
		{Link: "wl2", Addrs: []netip.Addr{r.addr[r.b], r.addr6[r.b]}},
		{Link: "wl9", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.9")}}}}
}

func (r *rig) set(s State) Report {
	r.t.Helper()
	report, err := r.kernel.Set(r.t.Context(), s)
	if err != nil {
		r.t.Fatal(err)
	}
	return report
}

// exchange sends bytes to an echo server and back, in rounds.
func (r *rig) exchange(network string, from *testnet.NS, to netip.Addr, rounds, size int) {
	r.t.Helper()
	c, err := from.Dial(network, netip.AddrPortFrom(to, 7).String(), 2*time.Second)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	buf := make([]byte, size)
	for range rounds {
		sent := make(chan error, 1)
		go func() { _, err := c.Write(buf); sent <- err }()
		_, err := io.ReadFull(c, make([]byte, size))
		if err := errors.Join(err, <-sent); err != nil {
			r.t.Fatalf("%s between %s and %s: %v", network, r.addr[from], to, err)
		}
	}
}

// echo serves TCP and UDP.
func echo(ns *testnet.NS) {
	ns.Serve("tcp", ":7", func(c net.Conn) { _, _ = io.Copy(c, c) })
	p := ns.ListenPacket("udp", ":7")
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = p.WriteTo(buf[:n], from)
		}
	}()
}

func (r *rig) redirected() Redirected {
	r.t.Helper()
	n, err := r.kernel.Redirected()
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// Established connections of TCP and UDP, of both families, are redirected in both directions, from pod to pod and to
// another node and back; connection tracking sees their beginning and their end.
func TestEstablishedConnectionsAreRedirected(t *testing.T) {
	r := newRig(t)
	if got := r.set(r.state()); got.Pods != 2 || got.Uplinks != 1 {
		t.Errorf("programs at %+v", got)
	}
	echo(r.b)
	echo(r.c)
	for _, tt := range []struct {
		to     *testnet.NS
		remote bool
	}{{r.b, false}, {r.c, true}} {
		for _, to := range []netip.Addr{r.addr[tt.to], r.addr6[tt.to]} {
			for _, network := range []string{"tcp", "udp"} {
				const rounds = 200
				before := r.redirected()
				r.exchange(network, r.a, to, rounds, 1000)
				after := r.redirected()
				local, remote := after.Local-before.Local, after.Remote-before.Remote
				want := [2]uint64{2 * rounds * 9 / 10, 0}
				if tt.remote {
					want = [2]uint64{rounds * 9 / 10, rounds * 9 / 10}
				}
				if local < want[0] || remote < want[1] {
					t.Errorf("%s to %s: %d packets to pods and %d to nodes were redirected, want %d and %d", network,
						to, local, remote, want[0], want[1])
				}
			}
			testnet.Eventually(t, 10*time.Second, func() error {
				out := r.node.Run("sh", "-c", "conntrack -L -f "+map[bool]string{true: "ipv6", false: "ipv4"}[to.Is6()]+
					" -p tcp -d "+to.String()+" 2>/dev/null")
				if !strings.Contains(out, "TIME_WAIT") || strings.Contains(out, "ESTABLISHED") {
					return fmt.Errorf("connections to %s end as:\n%s", to, out)
				}
				return nil
			})
		}
	}
	r.noneInvalid()
	// Large transfers are whole.
	for _, to := range []netip.Addr{r.addr[r.b], r.addr6[r.b], r.addr[r.c], r.addr6[r.c]} {
		r.exchange("tcp", r.a, to, 1, 8<<20)
	}
}

// expect counts what is redirected while fn runs.
func (r *rig) expect(what string, some bool, fn func()) {
	r.t.Helper()
	before := r.redirected()
	fn()
	after := r.redirected()
	if n := after.Local + after.Remote - before.Local - before.Remote; (n > 0) != some {
		r.t.Errorf("%s: %d packets were redirected, want some: %t", what, n, some)
	}
}

// What the stack translates is left to it: every packet of such a connection meets its rules, in both directions.
func TestTranslatedConnectionsAreLeftToTheStack(t *testing.T) {
	r := newRig(t)
	r.set(r.state())
	echo(r.b)
	echo(r.c)
	r.node.Run("nft", "add table ip n; add chain ip n d { type nat hook prerouting priority -100; }; "+
		"add chain ip n s { type nat hook postrouting priority 100; }; "+
		"add rule ip n d ip daddr 10.96.0.1 dnat to 10.244.1.2; add rule ip n s ip daddr 10.244.2.3 masquerade")
	for _, network := range []string{"tcp", "udp"} {
		r.expect(network+" to a VIP", false, func() {
			r.exchange(network, r.a, netip.MustParseAddr("10.96.0.1"), 50, 100)
		})
		r.expect(network+" from another address", false, func() { r.exchange(network, r.a, r.addr[r.c], 50, 100) })
		r.expect(network+" untranslated", true, func() { r.exchange(network, r.a, r.addr[r.b], 50, 100) })
	}
}

// A connection that policy forbids after it began has a mark, and its packets meet the rules that drop it.
func TestMarkedConnectionsAreLeftToTheStack(t *testing.T) {
	r := newRig(t)
	r.set(r.state())
	echo(r.b)
	for _, network := range []string{"tcp", "udp"} {
		c, err := r.a.Dial(network, netip.AddrPortFrom(r.addr[r.b], 7).String(), 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		turn := func() error {
			if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
			_, err := c.Read(make([]byte, 1))
			return err
		}
		for range 20 {
			if err := turn(); err != nil {
				t.Fatal(err)
			}
		}
		r.expect("before the mark", true, func() { _ = turn() })
		r.node.Run("sh", "-c", "conntrack -U -p "+network+" -d 10.244.1.2 -m 0x80000000")
		time.Sleep(time.Second / 5) // an answer is used for a tenth of a second
		r.expect("after the mark", false, func() {
			for range 5 {
				if err := turn(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// A pod that sends with the addresses and ports of another pod's connection has its packets checked by the stack.
func TestAnotherPodsPacketsAreLeftToTheStack(t *testing.T) {
	r := newRig(t)
	r.set(r.state())
	echo(r.b)
	d := r.pod(r.node, 1, 4)
	s := r.state()
	s.Pods = append(s.Pods, Pod{Link: "wl4", Addrs: []netip.Addr{r.addr[d], r.addr6[d]}})
	if got := r.set(s); got.Pods != 3 {
		t.Fatalf("programs at %+v", got)
	}
	from := netip.AddrPortFrom(r.addr[r.a], 5555)
	send := func(ns *testnet.NS) {
		c := ns.ListenPacket("udp", from.String())
		defer c.Close()
		to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.addr[r.b], 7))
		for range 20 {
			if _, err := c.WriteTo([]byte("x"), to); err != nil {
				t.Fatal(err)
			}
			if ns == r.a {
				_, _, _ = c.ReadFrom(make([]byte, 9))
			}
		}
	}
	r.expect("the pod itself", true, func() { send(r.a) })
	d.Addr("eth0", from.Addr().String()+"/32")
	before := r.redirected()
	send(d)
	if n := r.redirected().Local - before.Local; n > 20 { // answers go to the pod itself
		t.Errorf("%d packets were redirected", n)
	}
	r.node.Run("nft", "insert rule inet t f iifname wl4 drop")
	r.expect("after the stack drops them", false, func() { send(d) })
}

// The next agent replaces the programs, and removal leaves no program; connections go on through both.
func TestProgramsAreReplacedAndRemoved(t *testing.T) {
	r := newRig(t)
	r.set(r.state())
	echo(r.b)
	c, err := r.a.Dial("tcp", netip.AddrPortFrom(r.addr[r.b], 7).String(), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	turns := func() {
		t.Helper()
		for range 20 {
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	turns()
	first := r.kernel
	r.kernel = &Kernel{NSFD: r.node.FD()}
	r.set(r.state())
	before, err := first.Redirected()
	if err != nil {
		t.Fatal(err)
	}
	r.expect("by the next agent", true, turns)
	if after, _ := first.Redirected(); after != before {
		t.Errorf("the former programs redirect: %+v, then %+v", before, after)
	}
	left, err := r.kernel.Remains(t.Context())
	want := "[program wl_fastpath at link eth0 program wl_fastpath at link wl1 program wl_fastpath at link wl2]"
	if err != nil || fmt.Sprint(left) != want {
		t.Errorf("there is %v, %v; want %s", left, err, want)
	}
	// A pod that is gone is neither source nor destination.
	s := r.state()
	s.Pods, s.Uplinks = s.Pods[:1], nil
	r.set(s)
	time.Sleep(time.Second / 5)
	r.expect("to a pod that is left out", false, turns)
	if left, err := r.kernel.Remains(t.Context()); err != nil || len(left) != 1 {
		t.Errorf("there is %v, %v; want one link", left, err)
	}
	r.set(r.state())
	if err := r.kernel.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := r.kernel.Remains(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	turns()
}

// A pod whose link has a bandwidth limit, and a packet above the MTU, are left to the stack.
func TestLimitsHold(t *testing.T) {
	r := newRig(t)
	r.node.Run("tc", "qdisc", "add", "dev", "wl2", "root", "tbf", "rate", "100mbit", "burst", "64k", "latency", "25ms")
	if got := r.set(r.state()); fmt.Sprint(got.Shaped) != "[wl2]" || got.Pods != 1 {
		t.Errorf("programs at %+v", got)
	}
	echo(r.b)
	r.expect("to a limited pod", false, func() { r.exchange("tcp", r.a, r.addr[r.b], 50, 1000) })
	r.node.Run("tc", "qdisc", "del", "dev", "wl2", "root")
	r.node.Run("ip", "link", "set", "wl2", "mtu", "1400")
	r.b.Run("ip", "link", "set", "eth0", "mtu", "1400")
	r.set(r.state())
	r.expect("small datagrams", true, func() { r.exchange("udp", r.a, r.addr[r.b], 50, 1300) })
	before := r.redirected()
	c, err := r.a.Dial("udp", netip.AddrPortFrom(r.addr[r.b], 7).String(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 10 {
		_, _ = c.Write(make([]byte, 1450)) // the stack answers with the smaller MTU
	}
	if n := r.redirected().Local - before.Local; n > 0 {
		t.Errorf("%d packets above the MTU were redirected", n)
	}
	r.exchange("tcp", r.a, r.addr[r.b], 1, 4<<20)
}

// noneInvalid fails if connection tracking has found a packet invalid.
func (r *rig) noneInvalid() {
	r.t.Helper()
	if out := r.node.Run("nft", "list", "chain", "inet", "t", "f"); !strings.Contains(out,
		"ct state invalid counter packets 0") {
		r.t.Errorf("connection tracking finds packets invalid: %s", out)
	}
}
