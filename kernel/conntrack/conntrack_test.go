package conntrack

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/nft"
)

// world is a client and a router, which translates what goes to a VIP to one
// of two servers behind it, told apart by port.
type world struct {
	client, router, server *testnet.NS
	kernel                 *Kernel
	nft                    *nft.Kernel
}

const (
	udp, tcp = uint8(17), uint8(6)
	vip4     = "10.96.0.1"
	vip6     = "fd00:96::1"
)

func newWorld(t *testing.T) *world {
	w := &world{client: testnet.New(t, "client"), router: testnet.New(t, "router"), server: testnet.New(t, "server")}
	testnet.Veth(w.client, "eth0", w.router, "c")
	testnet.Veth(w.server, "eth0", w.router, "s")
	for _, a := range []struct {
		ns         *testnet.NS
		link, addr string
	}{{w.client, "eth0", "10.1.0.2/24"}, {w.router, "c", "10.1.0.1/24"}, {w.server, "eth0", "10.2.0.2/24"},
		{w.router, "s", "10.2.0.1/24"},
		{w.client, "eth0", "fd00:1::2/64"}, {w.router, "c", "fd00:1::1/64"}, {w.server, "eth0", "fd00:2::2/64"},
		{w.router, "s", "fd00:2::1/64"}} {
		a.ns.Addr(a.link, a.addr)
	}
	w.router.Router()
	for ns, gw := range map[*testnet.NS][2]string{w.client: {"10.1.0.1", "fd00:1::1"},
		w.server: {"10.2.0.1", "fd00:2::1"}} {
		ns.Route("0.0.0.0/0", gw[0])
		ns.Route("::/0", gw[1])
	}
	// A VIP that is not translated ends at the server's side, unanswered.
	w.router.Route(vip4+"/32", "10.2.0.2")
	w.router.Route(vip6+"/128", "fd00:2::2")
	var err error
	if w.kernel, err = NewKernel(w.router.FD()); err != nil {
		t.Fatal(err)
	}
	if w.nft, err = nft.NewKernel(w.router.FD()); err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"8001", "8002"} {
		w.serve(port)
	}
	return w
}

// serve answers on TCP and UDP with the name of the port.
func (w *world) serve(port string) {
	u, l := w.server.ListenPacket("udp", ":"+port), w.server.Listen("tcp", ":"+port)
	go func() {
		buf := make([]byte, 10)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(port), from)
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for buf := make([]byte, 10); ; {
					if _, err := c.Read(buf); err != nil {
						return
					}
					_, _ = c.Write([]byte(port))
				}
			}()
		}
	}()
}

// translate sends the VIP's port 80 to one port of the server, 0 for nowhere.
func (w *world) translate(t *testing.T, port uint16) {
	t.Helper()
	for f, a := range map[nft.Family][2]string{nft.IPv4: {vip4, "10.2.0.2"}, nft.IPv6: {vip6, "fd00:2::2"}} {
		table := nft.Table{Family: f, Name: "dnat",
			Sets: []nft.Set{{Name: "to", Key: []nft.Type{nft.Addr, nft.Proto, nft.Port},
				Data: []nft.Type{nft.Addr, nft.Port}}},
			Chains: []nft.Chain{{Name: "pre", Hook: &nft.Hook{Type: "nat", Hook: "prerouting", Priority: -100},
				Rules: []nft.Rule{{nft.DNATBy{Fields: []nft.Field{nft.Daddr, nft.L4Proto, nft.Dport}, Map: "to"}}}}}}
		b := nft.Batch{Base: true, Clear: []string{"to"}, Add: map[string][]nft.Element{}}
		for _, proto := range []uint8{udp, tcp} {
			if port != 0 {
				b.Add["to"] = append(b.Add["to"], nft.Element{Key: nft.Pack(netip.MustParseAddr(a[0]), proto,
					uint16(80)), Data: nft.Pack(netip.MustParseAddr(a[1]), port)})
			}
		}
		if err := w.nft.Commit(t.Context(), table, b); err != nil {
			t.Fatal(err)
		}
	}
}

func say(t *testing.T, c net.Conn) string {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if _, err := c.Write([]byte("?")); err != nil {
		return err.Error()
	}
	n, err := c.Read(buf)
	if err != nil {
		return err.Error()
	}
	return string(buf[:n])
}

func (w *world) dial(t *testing.T, network, to string) net.Conn {
	t.Helper()
	c, err := w.client.Dial(network, to, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestOnlyTheFlowsNamedAreRemoved(t *testing.T) {
	w := newWorld(t)
	w.translate(t, 8001)
	type client struct {
		name  string
		conn  net.Conn
		after string
	}
	clients := []client{
		{"UDP to the VIP", w.dial(t, "udp", vip4+":80"), "8002"},
		{"UDP to the VIP, IPv6, by the wildcard", w.dial(t, "udp", "["+vip6+"]:80"), "8002"},
		{"TCP to the VIP", w.dial(t, "tcp", vip4+":80"), "8001"},
		{"UDP to the backend itself", w.dial(t, "udp", "10.2.0.2:8001"), "8001"},
	}
	for _, c := range clients {
		if got := say(t, c.conn); got != "8001" {
			t.Fatalf("%s: before: %s", c.name, got)
		}
	}
	w.translate(t, 8002)
	// Flows are kept by connection tracking until they are flushed; others' names
	// do nothing.
	if err := w.kernel.Flush(t.Context(), []Flow{{ap(vip4 + ":81"), ap("10.2.0.2:8001")},
		{ap(vip4 + ":80"), ap("10.2.0.2:8002")}}, []netip.AddrPort{ap(vip4 + ":80")}); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		if got := say(t, c.conn); got != "8001" {
			t.Fatalf("%s: not flushed: %s", c.name, got)
		}
	}
	if err := w.kernel.Flush(t.Context(), []Flow{{ap(vip4 + ":80"), ap("10.2.0.2:8001")},
		{ap("[::]:80"), ap("[fd00:2::2]:8001")}}, nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		if got := say(t, c.conn); got != c.after {
			t.Errorf("%s: after: %s, want %s", c.name, got, c.after)
		}
	}
}

func TestFlowsToTheVIPItselfAreRemoved(t *testing.T) {
	w := newWorld(t)
	w.translate(t, 0)
	c := w.dial(t, "udp", vip4+":80")
	if got := say(t, c); got == "8001" {
		t.Fatal("answered without translation")
	}
	w.translate(t, 8001)
	if got := say(t, c); got == "8001" {
		t.Fatal("the flow was not tracked, so this test shows nothing")
	}
	if err := w.kernel.Flush(t.Context(), nil, []netip.AddrPort{ap(vip4 + ":80")}); err != nil {
		t.Fatal(err)
	}
	if got := say(t, c); got != "8001" {
		t.Errorf("after: %s", got)
	}
}
