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
	if out := r.node.Run("nft", "list", "chain", "inet", "t", "f"); !strings.Contains(out,
		"ct state invalid counter packets 0") {
		t.Errorf("connection tracking finds packets invalid: %s", out)
	}
	// Large transfers are whole.
	for _, to := range []netip.Addr{r.addr[r.b], r.addr6[r.b], r.addr[r.c], r.addr6[r.c]} {
		r.exchange("tcp", r.a, to, 1, 8<<20)
	}
}
