package nftables

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/networkpolicy"
)

const in, out = networkpolicy.Ingress, networkpolicy.Egress

func TestAnIsolatedPodIsReachedByWhoMay(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b, c := l.pods["a"], l.pods["b"], l.pods["c"]
	r := rules{}.isolate(a, in, "p").
		peer(in, "p", ports(tcp(80, 80), udp(81, 90)), b.addrs[:]...).
		blocks(in, "p",
			between("172.30.0.0", "172.30.0.98", all()), between("172.30.0.99", "172.30.0.99", ports(tcp(80, 80))),
			between("172.30.0.100", "172.30.0.255", all()),
			between("fd00:30::99", "fd00:30::99", ports(tcp(80, 80))))
	l.entries = r
	l.sync()
	for _, is6 := range families() {
		to := at(a.addrs, is6)
		end := End{Direction: in, Addr: to}
		l.passes("a port of TCP", b.NS, "tcp", port(to, 80))
		l.dies("the same port of UDP", b.NS, "udp", port(to, 80), end)
		l.passes("a range of UDP", b.NS, "udp", port(to, 81))
		l.dies("a port that is not allowed", b.NS, "tcp", port(to, 81), end)
		l.dies("a pod that is not allowed", c.NS, "tcp", port(to, 80), end)
		l.passes("a block", l.outside, "tcp", port(to, 80))
		l.dies("a block at another port", l.outside, "tcp", port(to, 81), end)
		l.passes("replies to what it asks for", a.NS, "udp", port(at(c.addrs, is6), 80))
		l.passes("the other direction is open", a.NS, "tcp", port(at(c.addrs, is6), 80))
		l.passes("another pod", c.NS, "tcp", port(at(b.addrs, is6), 81))
		for _, network := range networks() {
			l.passes("the own node", l.node, network, port(to, 81))
			l.passes("to the own node", a.NS, network, port(nodeAddr(is6), 81))
			l.passes("itself", a.NS, network, port(to, 81))
		}
		if l.ping(c.NS, to) == nil || l.ping(b.NS, to) == nil {
			t.Error("ICMP is allowed, which has no port")
		}
		if err := l.ping(l.node, to); err != nil {
			t.Errorf("ICMP from the own node: %v", err)
		}
	}
}

func TestAnIsolatedPodReachesWhatItMay(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b, c := l.pods["a"], l.pods["b"], l.pods["c"]
	l.entries = rules{}.isolate(a, out, "e").isolate(b, in, "i").
		peer(out, "e", all(), b.addrs[:]...).
		blocks(out, "e", between("172.30.0.99", "172.30.0.99", ports(udp(80, 80))),
			between("fd00:30::99", "fd00:30::99", ports(udp(80, 80)))).
		peer(in, "i", ports(tcp(80, 80)), a.addrs[:]...)
	l.sync()
	for _, is6 := range families() {
		from, to := End{Direction: out, Addr: at(a.addrs, is6)}, at(b.addrs, is6)
		l.passes("both ends allow", a.NS, "tcp", port(to, 80))
		l.dies("egress allows, ingress does not", a.NS, "udp", port(to, 80), End{Direction: in, Addr: to})
		l.dies("a pod that is not allowed", a.NS, "tcp", port(at(c.addrs, is6), 80), from)
		l.passes("a block", a.NS, "udp", port(outsideAddr(is6), 80))
		l.dies("a block at another port", a.NS, "udp", port(outsideAddr(is6), 81), from)
		l.passes("called by another", c.NS, "tcp", port(at(a.addrs, is6), 80))
		for _, network := range networks() {
			l.passes("the own node", a.NS, network, port(nodeAddr(is6), 81))
			l.passes("by the own node", l.node, network, port(at(a.addrs, is6), 81))
		}
		if l.ping(a.NS, at(c.addrs, is6)) == nil {
			t.Error("ICMP passes to who is not allowed")
		}
	}
	// What is allowed to all protocols.
	l.apply(rules{}.isolate(a, out, "e").peer(out, "e", all(), b.addrs[:]...))
	for _, is6 := range families() {
		if err := l.ping(a.NS, at(b.addrs, is6)); err != nil {
			t.Errorf("ICMP to a peer of which all is allowed: %v", err)
		}
	}
}

// askFrom is ask from an address of the namespace.
func askFrom(ns *testnet.NS, from netip.Addr, network string, to netip.AddrPort, within time.Duration) error {
	c, err := ns.DialFrom(network, netip.AddrPortFrom(from, 0).String(), to.String(), within)
	if err != nil {
		return err
	}
	defer c.Close()
	return echoed(c, within)
}

// What the node's ingress proxy sends is from an address of the node, and yet decided; what
// the node sends from its other addresses passes. Its connections that are forbidden by
// now are cut.
func TestTheIngressProxyIsDecidedLikeAPod(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, proxy := l.pods["a"], [2]netip.Addr{addr("10.244.1.254"), addr("fd00:244:0:1::ffff")}
	base := func() rules {
		r := rules{}.isolate(a, in, "p").peer(in, "p", ports(tcp(80, 80)), proxy[:]...)
		for _, p := range proxy {
			r[entryKey{Kind: networkpolicy.ProxyEntry, Addr: p}] = entry{}
		}
		return r
	}
	for _, p := range proxy {
		l.node.Run("ip", "addr", "add", netip.PrefixFrom(p, p.BitLen()).String(), "dev", "lo")
	}
	l.entries = base()
	l.sync()
	for _, is6 := range families() {
		from, to := at(proxy, is6), at(a.addrs, is6)
		denied := func(what string, network string, port uint16) {
			t.Helper()
			before := l.drops()[End{Direction: in, Addr: to}]
			err := askFrom(l.node, from, network, netip.AddrPortFrom(to, port), impatience)
			if after := l.drops()[End{Direction: in, Addr: to}]; err == nil || after <= before {
				t.Errorf("%s: %v, %d drops before and %d after", what, err, before, after)
			}
		}
		if err := askFrom(l.node, from, "tcp", port(to, 80), patience); err != nil {
			t.Errorf("the proxy at the port that is allowed: %v", err)
		}
		denied("the proxy at another port", "tcp", 81)
		denied("the proxy with another protocol", "udp", 80)
		l.passes("the node", l.node, "tcp", port(to, 81))
		l.passes("to a pod that is open", l.node, "tcp", port(at(l.pods["b"].addrs, is6), 81))
		if err := askFrom(l.node, from, "tcp", port(at(l.pods["b"].addrs, is6), 81), patience); err != nil {
			t.Errorf("the proxy to a pod that is open: %v", err)
		}
		c, err := l.node.DialFrom("tcp", netip.AddrPortFrom(from, 0).String(), port(to, 80).String(), patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := echoed(c, patience); err != nil {
			t.Error(err)
		}
		closed := base()
		delete(closed, entryKey{Kind: networkpolicy.PeerEntry, Direction: in, Profile: "p", Addr: from})
		l.apply(closed)
		if s := l.sweep(); s.Cut == 0 {
			t.Errorf("no connection of the proxy was cut: %+v", s)
		}
		if err := echoed(c, impatience); !timedOut(err) {
			t.Errorf("a connection of the proxy that is forbidden by now: %v", err)
		}
		denied("the proxy that no rule allows", "tcp", 80)
		l.apply(base())
	}
	// With ingress off the address is the node's like any other.
	off := base()
	for _, p := range proxy {
		delete(off, entryKey{Kind: networkpolicy.ProxyEntry, Addr: p})
	}
	l.apply(off)
	for _, is6 := range families() {
		if err := askFrom(l.node, at(proxy, is6), "udp", port(at(a.addrs, is6), 81), patience); err != nil {
			t.Errorf("with ingress off: %v", err)
		}
	}
}

// dnat sends a VIP's port 80 to a pod, as service proxies do: before policy looks at the
// destination; and masquerades what a pod sends to itself so.
func (l *lab) dnat(to *pod) {
	l.t.Helper()
	text := ""
	for f, is6 := range map[string]bool{"ip": false, "ip6": true} {
		backend := netip.AddrPortFrom(at(to.addrs, is6), 80)
		text += fmt.Sprintf(`table %[1]s svc {
			chain pre { type nat hook prerouting priority -100;
				%[1]s daddr %[2]s meta l4proto { tcp, udp } dnat to %[3]s; }
			chain post { type nat hook postrouting priority 100;
				%[1]s saddr %[4]s %[1]s daddr %[4]s masquerade; }
		}
		`, f, vip(is6), backend, at(to.addrs, is6))
	}
	l.node.Run("sh", "-c", "nft -f - <<'X'\n"+text+"\nX")
}

func TestPolicyHoldsBehindTranslation(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b, c := l.pods["a"], l.pods["b"], l.pods["c"]
	l.entries = rules{}.isolate(a, in, "p").isolate(a, out, "q").isolate(b, out, "e").
		peer(in, "p", ports(tcp(80, 80)), b.addrs[:]...).
		peer(out, "e", ports(tcp(80, 80)), a.addrs[:]...)
	l.sync()
	l.dnat(a)
	for _, is6 := range families() {
		l.passes("by a VIP", b.NS, "tcp", port(vip(is6), 1234))
		l.dies("by a VIP, a protocol that is not allowed", b.NS, "udp", port(vip(is6), 1234),
			End{Direction: out, Addr: at(b.addrs, is6)})
		l.dies("by a VIP, a pod that is not allowed", c.NS, "tcp", port(vip(is6), 1234),
			End{Direction: in, Addr: at(a.addrs, is6)})
		for _, network := range networks() {
			l.passes("itself by a VIP", a.NS, network, port(vip(is6), 80))
		}
	}
}

func (l *lab) open(from *testnet.NS, network string, to netip.AddrPort) net.Conn {
	l.t.Helper()
	conn, err := from.Dial(network, to.String(), patience)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = conn.Close() })
	if err := echoed(conn, patience); err != nil {
		l.t.Fatalf("%s to %s: %v", network, to, err)
	}
	return conn
}

func TestForbiddenFlowsAreCutAndOthersAreNot(t *testing.T) {
	for _, mode := range []string{"nftables", "ebpf"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			took := func() uint64 { return 0 }
			if mode == "ebpf" {
				took = l.fastPath()
			}
			cutForbidden(l)
			if n := took(); mode == "ebpf" && n < 50 {
				t.Errorf("%d packets took the fast path", n)
			}
		})
	}
}

func cutForbidden(l *lab) {
	t := l.t
	a, b, c := l.pods["a"], l.pods["b"], l.pods["c"]
	peers := append(b.addrs[:], append(c.addrs[:], vip(false))...)
	wide := rules{}.isolate(a, in, "p").isolate(c, out, "e").peer(in, "p", all(), peers...).
		peer(out, "e", ports(tcp(80, 80), udp(80, 80)), append(a.addrs[:], b.addrs[:]...)...)
	l.entries = wide
	l.sync()
	l.dnat(a)
	type flow struct {
		name string
		net.Conn
		cut bool
	}
	var flows []flow
	for _, is6 := range families() {
		for _, network := range networks() {
			flows = append(flows,
				flow{"direct, forbidden", l.open(b.NS, network, port(at(a.addrs, is6), 81)), true},
				flow{"direct, allowed", l.open(b.NS, network, port(at(a.addrs, is6), 80)), network == "udp"},
				flow{"by a VIP, forbidden for UDP", l.open(b.NS, network, port(vip(is6), 80)), network == "udp"},
				flow{"by a VIP, of c", l.open(c.NS, network, port(vip(is6), 80)), true},
				flow{"of c to another pod", l.open(c.NS, network, port(at(b.addrs, is6), 80)), false},
				flow{"of the node", l.open(l.node, network, port(at(a.addrs, is6), 81)), false},
				flow{"to the node", l.open(c.NS, network, port(nodeAddr(is6), 81)), false},
				flow{"of a", l.open(a.NS, network, port(at(b.addrs, is6), 81)), false},
				flow{"of a to itself by a VIP", l.open(a.NS, network, port(vip(is6), 80)), false})
		}
	}
	if s := l.sweep(); s != (Swept{}) {
		t.Errorf("flows that are allowed were swept: %+v", s)
	}
	marks := l.marks()
	narrow := maps.Clone(map[entryKey]entry(wide))
	maps.Copy(narrow, rules{}.peer(in, "p", ports(tcp(80, 80)), b.addrs[:]...))
	for _, x := range c.addrs {
		delete(narrow, entryKey{Kind: networkpolicy.PeerEntry, Direction: in, Profile: "p", Addr: x})
	}
	l.apply(narrow)
	for _, f := range flows {
		if err := echoed(f, patience); err != nil {
			t.Errorf("%s: was cut before the sweep: %v", f.name, err)
		}
	}
	n := 0
	for _, f := range flows {
		if f.cut {
			n++
		}
	}
	if s := l.sweep(); s.Cut != n || s.Freed != 0 {
		t.Errorf("swept %+v, want %d cut", s, n)
	}
	time.Sleep(l.forgets)
	for _, f := range flows {
		within := patience
		if f.cut {
			within = impatience
		}
		if err := echoed(f, within); (err != nil) != f.cut {
			t.Errorf("%s, %s to %s: after the sweep: %v, want it cut: %t", f.name, f.LocalAddr().Network(),
				f.RemoteAddr(), err, f.cut)
		}
	}
	// Replies are dropped, too: what is on its way arrives nowhere.
	for _, is6 := range families() {
		if l.drops()[End{Direction: in, Addr: at(a.addrs, is6)}] == 0 {
			t.Error("no drop was counted")
		}
	}
	// Allowed again, they go on.
	l.apply(wide)
	if s := l.sweep(); s.Freed != n || s.Cut != 0 {
		t.Errorf("swept %+v, want %d freed", s, n)
	}
	for _, f := range flows {
		if f.LocalAddr().Network() == "udp" {
			drain(f)
		}
		if err := echoed(f, patience); err != nil {
			t.Errorf("%s, %s: allowed again: %v", f.name, f.LocalAddr().Network(), err)
		}
	}
	if now := l.marks(); now != marks {
		t.Errorf("marks were %s and are %s", marks, now)
	}
}

// drain reads what came late.
func drain(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(10 * time.Millisecond))
	for buf := make([]byte, 100); ; {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

// marks are the marks of all flows that are not 0.
func (l *lab) marks() string {
	out := []string{}
	for line := range strings.Lines(l.node.Run("sh", "-c", "conntrack -L 2>/dev/null")) {
		if i := strings.Index(line, "mark="); i >= 0 && !strings.HasPrefix(line[i:], "mark=0 ") {
			out = append(out, line)
		}
	}
	return fmt.Sprint(out)
}

func TestAMarkOfOthersIsKept(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := l.pods["a"], l.pods["b"]
	l.entries = rules{}.isolate(a, in, "p").peer(in, "p", all(), b.addrs[:]...)
	l.sync()
	f := l.open(b.NS, "tcp", port(a.addrs[0], 80))
	track := conntrack.NewTracker(l.node.FD())
	if err := track.Each(t.Context(), 0, func(x conntrack.Tracked) error {
		return track.SetMark(t.Context(), x, 0x123,
			0xfff)
	}); err != nil {
		t.Fatal(err)
	}
	if err := echoed(f, patience); err != nil {
		t.Errorf("a flow that others marked: %v", err)
	}
	l.apply(rules{}.isolate(a, in, "p"))
	if s := l.sweep(); s.Cut != 1 {
		t.Errorf("swept %+v", s)
	}
	if got := l.marks(); !strings.Contains(got, fmt.Sprintf("mark=%d ", uint32(CutMark|0x123))) {
		t.Errorf("marks: %s", got)
	}
	if err := l.mode.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := l.marks(); !strings.Contains(got, fmt.Sprintf("mark=%d ", 0x123)) {
		t.Errorf("marks after removing: %s", got)
	}
	if left, err := l.mode.Remains(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("remains: %v, %v", left, err)
	}
}

// dns serves the VIP of DNS by a socket of the node, whose packets are not tracked, and
// without one translates to the namespace outside.
func (l *lab) dns() {
	l.t.Helper()
	text := ""
	for f, is6 := range map[string]bool{"ip": false, "ip6": true} {
		l.node.Run("ip", "addr", "add", dnsVIP(is6).String(), "dev", "lo")
		text += fmt.Sprintf(`table %[1]s dns {
			chain raw { type filter hook prerouting priority -300;
				%[1]s daddr %[2]s udp dport 80 socket wildcard 0 notrack; }
			chain rawout { type filter hook output priority -300;
				%[1]s saddr %[2]s udp sport 80 notrack; }
			chain nat { type nat hook prerouting priority -100;
				%[1]s daddr %[2]s meta l4proto { tcp, udp } dnat to %[3]s; }
		}
		`, f, dnsVIP(is6), netip.AddrPortFrom(farAddr(is6), 83))
	}
	l.node.Run("sh", "-c", "nft -f - <<'X'\n"+text+"\nX")
}

func TestTheDNSAddressIsAPeer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b, c := l.pods["a"], l.pods["b"], l.pods["c"]
	l.dns()
	vips := []netip.Addr{dnsVIP(false), dnsVIP(true)}
	// a may ask DNS, b may everything but DNS, c is open.
	l.entries = rules{}.dns(vips...).isolate(a, out, "dns").isolate(b, out, "rest").
		peer(out, "dns", ports(udp(80, 80), tcp(80, 80)), vips...).
		blocks(out, "rest", between("0.0.0.0", "10.96.0.9", all()), between("10.96.0.11", "255.255.255.255", all()),
			between("::", "fd00:96::9", all()), between("fd00:96::b", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", all()))
	l.sync()
	probe := func(where string) {
		for _, is6 := range families() {
			to := port(dnsVIP(is6), 80)
			for _, network := range networks() {
				l.passes(where+": who may", a.NS, network, to)
				l.passes(where+": who is open", c.NS, network, to)
				l.dies(where+": who may not", b.NS, network, to, End{Direction: out, Addr: at(b.addrs, is6)})
			}
			l.dies(where+": another port", a.NS, "udp", port(dnsVIP(is6), 82),
				End{Direction: out, Addr: at(a.addrs, is6)})
			l.dies(where+": past the VIP", a.NS, "udp", port(farAddr(is6), 83),
				End{Direction: out, Addr: at(a.addrs, is6)})
		}
	}
	probe("another node") // translated, since the node's sockets are wildcards
	var sockets []net.PacketConn
	for _, is6 := range families() {
		sockets = append(sockets, l.node.ListenPacket("udp", port(dnsVIP(is6), 80).String()))
	}
	for _, u := range sockets {
		go func() {
			buf := make([]byte, 100)
			for {
				n, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(buf[:n], from)
			}
		}()
	}
	l.node.ForgetFlows()
	probe("this node")
	// No longer allowed, the flow by translation is cut.
	_ = sockets[0].Close()
	_ = sockets[1].Close()
	l.node.ForgetFlows()
	f := l.open(a.NS, "tcp", port(dnsVIP(false), 80))
	l.apply(rules{}.isolate(a, out, "dns"))
	if s := l.sweep(); s.Cut != 1 {
		t.Errorf("swept %+v", s)
	}
	if echoed(f, impatience) == nil {
		t.Error("goes on")
	}
}

func TestFragments(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := l.pods["a"], l.pods["b"]
	l.entries = rules{}.isolate(a, in, "p").peer(in, "p", ports(udp(80, 80)), b.addrs[:]...)
	l.sync()
	for _, is6 := range families() {
		for p, allowed := range map[uint16]bool{80: true, 81: false} {
			c, err := b.Dial("udp", port(at(a.addrs, is6), p).String(), patience)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			big := make([]byte, 3500)
			if _, err := c.Write(big); err != nil {
				t.Fatal(err)
			}
			within := impatience
			if allowed {
				within = patience
			}
			_ = c.SetReadDeadline(time.Now().Add(within))
			n, err := c.Read(make([]byte, 4096))
			if allowed != (err == nil && n == len(big)) {
				t.Errorf("a datagram in fragments to %d, IPv6 %t: %d bytes, %v", p, is6, n, err)
			}
		}
	}
}

func TestARestartChangesNothingAndAFlushIsRepaired(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b, c := l.pods["a"], l.pods["b"], l.pods["c"]
	l.entries = rules{}.dns(dnsVIP(false), dnsVIP(true)).isolate(a, in, "p").isolate(b, out, "e").peer(in, "p",
		ports(tcp(80, 80), tcp(90, 99)), b.addrs[:]...).
		peer(out, "e", all(), a.addrs[:]...).
		blocks(in, "p", between("10.0.0.0", "10.0.0.7", all()), between("10.0.0.8", "10.0.0.8", ports(tcp(1, 1))),
			between("255.255.255.0", "255.255.255.255", all()), between("fd00:30::99", "fd00:30::99",
				ports(tcp(80, 80))))
	l.sync()
	before := l.ruleset()
	l.restart()
	seen, err := l.mode.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	probe := newCounting(l.mode.conn)
	l.mode.conn = probe
	l.sync()
	if after := l.ruleset(); after != before {
		t.Errorf("a restart changed\n%s\nto\n%s", before, after)
	}
	if probe.elements != 0 {
		t.Errorf("a restart changed %d elements", probe.elements)
	}
	l.node.Run("nft", "flush", "ruleset")
	select {
	case <-seen:
	case <-time.After(patience):
		t.Fatal("the flush was not seen")
	}
	l.passes("flushed", c.NS, "tcp", port(a.addrs[0], 80))
	l.sync()
	// The end of the connection above may come by now, and is dropped and counted.
	if after := stripCounters(l.ruleset()); after != stripCounters(before) {
		t.Errorf("repaired to\n%s\nfrom\n%s", after, before)
	}
	l.dies("repaired", c.NS, "tcp", port(a.addrs[0], 80), End{Direction: in, Addr: a.addrs[0]})
	// A foreign element, and one that is missing.
	l.node.Run("nft", "add element ip wayleave-policy ingress-peers-p { 10.244.1.4 : return }")
	l.node.Run("nft", "delete element ip wayleave-policy ingress { 10.244.1.2 }")
	l.node.Run("nft", "add map ip wayleave-policy ingress-peers-old { type ipv4_addr : verdict; }")
	l.sync()
	l.dies("repaired", c.NS, "tcp", port(a.addrs[0], 80), End{Direction: in, Addr: a.addrs[0]})
	if after := stripCounters(l.ruleset()); after != stripCounters(before) {
		t.Errorf("repaired to\n%s\nfrom\n%s", after, before)
	}
	// Nobody is isolated: no chain has a hook any more.
	l.apply(map[entryKey]entry{})
	if text := l.ruleset(); strings.Contains(text, "hook") || strings.Contains(text, "-p") &&
		strings.Contains(text, "profile") {
		t.Errorf("nobody is isolated, and there is\n%s", text)
	}
	l.passes("nobody is isolated", c.NS, "tcp", port(a.addrs[0], 80))
}

func stripCounters(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if i := strings.Index(line, " counter packets"); i >= 0 {
			line = line[:i] + "\n"
		}
		b.WriteString(line)
	}
	return b.String()
}

// counting counts what is committed.
type counting struct {
	nft.Conn
	elements, rules int
}

func newCounting(c nft.Conn) *counting { return &counting{Conn: c} }
