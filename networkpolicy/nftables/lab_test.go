package nftables

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/bpf/fastpath"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
)

// lab is a node with pods a, b and c, and a namespace outside that is another node's pod
// (10.244.2.2), too.
type lab struct {
	t       testing.TB
	node    *testnet.NS
	outside *testnet.NS
	pods    map[string]*pod
	conn    *nft.Kernel
	mode    *Mode
	entries map[entryKey]entry
	// forgets is how long the fast path uses an answer of connection tracking.
	forgets time.Duration
	// path is the fast path, if there is one.
	path *fastpath.Kernel
}

type pod struct {
	*testnet.NS
	addrs [2]netip.Addr // IPv4, IPv6
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// Addresses of the lab.
func nodeAddr(is6 bool) netip.Addr {
	return pick(is6, "172.30.0.1", "fd00:30::1")
}
func outsideAddr(is6 bool) netip.Addr { return pick(is6, "172.30.0.99", "fd00:30::99") }
func farAddr(is6 bool) netip.Addr     { return pick(is6, "10.244.2.2", "fd00:244:0:2::2") }
func vip(is6 bool) netip.Addr         { return pick(is6, "10.96.0.1", "fd00:96::1") }
func dnsVIP(is6 bool) netip.Addr      { return pick(is6, "10.96.0.10", "fd00:96::a") }

func pick(is6 bool, v4, v6 string) netip.Addr {
	if is6 {
		return addr(v6)
	}
	return addr(v4)
}

func at(a [2]netip.Addr, is6 bool) netip.Addr {
	if is6 {
		return a[1]
	}
	return a[0]
}

func families() []bool { return []bool{false, true} }

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{t: t, node: testnet.New(t, "node"), outside: testnet.New(t, "outside"), pods: map[string]*pod{},
		entries: map[entryKey]entry{}}
	l.node.Router()
	testnet.Veth(l.node, "eth0", l.outside, "eth0")
	for ns, a := range map[*testnet.NS][]string{l.node: {"172.30.0.1/24", "fd00:30::1/64"},
		l.outside: {"172.30.0.99/24", "fd00:30::99/64", "10.244.2.2/32"}} {
		for _, x := range a {
			ns.Addr("eth0", x)
		}
	}
	// Not the source of what the namespace sends by itself.
	l.outside.Run("ip", "addr", "add", farAddr(true).String(), "dev", "eth0", "nodad", "preferred_lft", "0")
	l.node.Route("0.0.0.0/0", "172.30.0.99")
	l.node.Route("::/0", "fd00:30::99")
	l.outside.Route("10.244.1.0/24", "172.30.0.1")
	l.outside.Route("fd00:244:0:1::/64", "fd00:30::1")
	for i, name := range []string{"a", "b", "c"} {
		l.pod(name, i+2)
	}
	for _, ns := range []*testnet.NS{l.pods["a"].NS, l.pods["b"].NS, l.pods["c"].NS, l.outside} {
		for _, p := range []string{":80", ":81"} {
			echo(ns, p)
		}
	}
	echo(l.node, ":81") // the node's port 80 is for DNS
	for _, is6 := range families() {
		echo(l.outside, port(farAddr(is6), 83).String())
	}
	var err error
	if l.conn, err = nft.NewKernel(l.node.FD()); err != nil {
		t.Fatal(err)
	}
	l.restart()
	return l
}

func (l *lab) pod(name string, host int) {
	p := &pod{NS: testnet.New(l.t, name), addrs: [2]netip.Addr{addr(fmt.Sprintf("10.244.1.%d", host)),
		addr(fmt.Sprintf("fd00:244:0:1::%d", host))}}
	testnet.Veth(p.NS, "eth0", l.node, name)
	p.Addr("eth0", p.addrs[0].String()+"/32")
	p.Addr("eth0", p.addrs[1].String()+"/128")
	l.node.Addr(name, "169.254.1.1/32")
	l.node.Run("ip", "addr", "add", "fe80::1/64", "dev", name, "nodad")
	p.Run("ip", "route", "add", "169.254.1.1", "dev", "eth0")
	p.Run("ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0")
	p.Run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
	l.node.Run("ip", "route", "add", p.addrs[0].String()+"/32", "dev", name, "src", nodeAddr(false).String())
	l.node.Run("ip", "-6", "route", "add", p.addrs[1].String()+"/128", "dev", name, "src", nodeAddr(true).String())
	l.pods[name] = p
}

// fastPath has the programs of mode ebpf at the links of pods and at eth0. It returns how many packets they redirected.
func (l *lab) fastPath() (took func() uint64) {
	l.t.Helper()
	k := &fastpath.Kernel{NSFD: l.node.FD()}
	if err := k.Possible(); errors.Is(err, fastpath.ErrUnsupported) {
		l.t.Skip(err)
	}
	s := fastpath.State{Uplinks: []string{"eth0"}}
	for name, p := range l.pods {
		mac := strings.TrimSpace(p.Run("sh", "-c", "ip -o link show eth0 | sed 's,.*link/ether \\([^ ]*\\).*,\\1,'"))
		for _, a := range p.addrs {
			l.node.Run("ip", "neigh", "replace", a.String(), "lladdr", mac, "dev", name, "nud", "permanent")
		}
		s.Pods = append(s.Pods, fastpath.Pod{Link: name, Addrs: p.addrs[:]})
	}
	l.node.Sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1")
	l.conn.Changed, l.path = k.Revoke, k
	if r, err := k.Set(l.t.Context(), s); err != nil || r.Pods != len(l.pods) {
		l.t.Fatalf("the fast path is at %+v, %v", r, err)
	}
	l.t.Cleanup(func() { _ = k.Remove(context.Background()) })
	l.forgets = 200 * time.Millisecond
	return func() uint64 {
		n, err := k.Redirected()
		if err != nil {
			l.t.Error(err)
		}
		return n.Local + n.Remote
	}
}

// echo answers on TCP and UDP with what was sent.
func echo(ns *testnet.NS, at string) {
	ns.Serve("tcp", at, func(c net.Conn) { _, _ = io.Copy(c, c) })
	u := ns.ListenPacket("udp", at)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(buf[:n], from)
		}
	}()
}

// restart has a new mode, as a new process would be.
func (l *lab) restart() {
	l.mode = New(l.conn, conntrack.NewTracker(l.node.FD()))
}

func (l *lab) sync() {
	l.t.Helper()
	if err := l.mode.Sync(l.t.Context(), maps.Clone(l.entries)); err != nil {
		l.t.Fatal(err)
	}
}

// apply makes these entries hold, by what differs from those of before.
func (l *lab) apply(next map[entryKey]entry) {
	l.t.Helper()
	set, del := map[entryKey]entry{}, []entryKey{}
	for k, e := range next {
		if old, ok := l.entries[k]; !ok || !old.Equal(e) {
			set[k] = e
		}
	}
	for k := range l.entries {
		if _, ok := next[k]; !ok {
			del = append(del, k)
		}
	}
	l.entries = next
	if err := l.mode.Apply(l.t.Context(), set, del); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) sweep() Swept {
	l.t.Helper()
	s, err := l.mode.Sweep(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// rules is entries in the making.
type rules map[entryKey]entry

// isolate has both addresses of a pod in a profile.
func (r rules) isolate(p *pod, d networkpolicy.Direction, profile string) rules {
	for _, a := range p.addrs {
		r[entryKey{Kind: networkpolicy.PodEntry, Direction: d, Addr: a}] = entry{Profile: profile}
	}
	return r
}

func (r rules) dns(addrs ...netip.Addr) rules {
	for _, a := range addrs {
		r[entryKey{Kind: networkpolicy.DNSEntry, Addr: a}] = entry{}
	}
	return r
}

func (r rules) peer(d networkpolicy.Direction, profile string, ports networkpolicy.Ports, addrs ...netip.Addr) rules {
	for _, a := range addrs {
		r[entryKey{Kind: networkpolicy.PeerEntry, Direction: d, Profile: profile, Addr: a}] = entry{Ports: ports}
	}
	return r
}

func (r rules) blocks(d networkpolicy.Direction, profile string, blocks ...networkpolicy.Block) rules {
	r[entryKey{Kind: networkpolicy.BlocksEntry, Direction: d, Profile: profile}] = entry{Blocks: blocks}
	return r
}

func between(from, to string, p networkpolicy.Ports) networkpolicy.Block {
	return networkpolicy.Block{Range: model.Range{From: addr(from), To: addr(to)}, Ports: p}
}

func all() networkpolicy.Ports { return networkpolicy.Ports{All: true} }

func ports(list ...networkpolicy.PortRange) networkpolicy.Ports {
	return networkpolicy.Ports{Ranges: list}
}

func tcp(from, to uint16) networkpolicy.PortRange {
	return networkpolicy.PortRange{Protocol: model.TCP, From: from, To: to}
}

func udp(from, to uint16) networkpolicy.PortRange {
	return networkpolicy.PortRange{Protocol: model.UDP, From: from, To: to}
}

// Time-outs: what should pass gets long, what should not is also looked for in the counters.
const (
	patience   = 5 * time.Second
	impatience = 300 * time.Millisecond
)

// ask sends and reads an answer.
func ask(from *testnet.NS, network string, to netip.AddrPort, within time.Duration) error {
	c, err := from.Dial(network, to.String(), within)
	if err != nil {
		return err
	}
	defer c.Close()
	return echoed(c, within)
}

func echoed(c net.Conn, within time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

func (l *lab) passes(what string, from *testnet.NS, network string, to netip.AddrPort) {
	l.t.Helper()
	if err := ask(from, network, to, patience); err != nil {
		l.t.Errorf("%s: %s from %s to %s does not pass: %v\n%v", what, network, from.Name, to, err, l.drops())
	}
}

// dies says that the packets are dropped, at this end.
func (l *lab) dies(what string, from *testnet.NS, network string, to netip.AddrPort, end End) {
	l.t.Helper()
	before := l.drops()[end]
	err := ask(from, network, to, impatience)
	if !timedOut(err) {
		l.t.Errorf("%s: %s from %s to %s: %v, want it dropped", what, network, from.Name, to, err)
	}
	if after := l.drops()[end]; after <= before {
		l.t.Errorf("%s: %s from %s to %s was not counted as dropped at %v: %v", what, network, from.Name, to,
			end, l.drops())
	}
}

func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

func (l *lab) drops() map[End]uint64 {
	l.t.Helper()
	d, err := l.mode.Drops(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	return d
}

func (l *lab) ruleset() string {
	l.t.Helper()
	return l.node.Run("nft", "list", "ruleset")
}

// ping sends one ICMP echo request.
func (l *lab) ping(from *testnet.NS, to netip.Addr) error {
	_, err := from.Try("ping", "-c", "1", "-W", "1", to.String())
	return err
}

func port(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

func networks() []string { return strings.Fields("tcp udp") }

// CommitAll implements nft.Conn.
func (c *counting) CommitAll(ctx context.Context, changes ...nft.Change) error {
	for _, ch := range changes {
		c.rules += len(ch.Batch.Chains) + len(ch.Batch.DropChains)
		for _, bySet := range []map[string][]nft.Element{ch.Batch.Delete, ch.Batch.Add} {
			for _, list := range bySet {
				c.elements += len(list)
			}
		}
	}
	return c.Conn.CommitAll(ctx, changes...)
}
