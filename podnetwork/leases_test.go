package podnetwork

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/routes"
)

// After a reboot the links are gone: their leases end, and hostPorts with them. A
// pod that lives keeps its own.
func TestARebootFreesTheLeases(t *testing.T) {
	c := newCluster(t)
	m := c.nodes[0]
	dead, living := m.mustAdd("dead"), m.mustAdd("living")
	m.stop()
	for _, l := range m.net.leases.List() {
		if l.Container == dead.id {
			m.ns.Run("ip", "link", "del", l.HostLink)
		}
	}
	m.start(c.store)
	got := m.net.leases.List()
	if len(got) != 1 || got[0].Container != living.id {
		t.Errorf("leases are %+v", got)
	}
}

// Without the file of the leases the addresses of living pods are not given out
// again, and DEL and GC still free them.
func TestALostFileGivesNoAddressTwice(t *testing.T) {
	c := newCluster(t)
	m := c.nodes[0]
	a, b := m.mustAdd("a"), m.mustAdd("b")
	m.stop()
	if err := os.Remove(filepath.Join(m.path("state"), "leases")); err != nil {
		t.Fatal(err)
	}
	m.start(c.store)
	for i := range 5 {
		p := m.mustAdd(fmt.Sprintf("later%d", i))
		if slices.Contains(p.ips, a.ips[0]) || slices.Contains(p.ips, b.ips[0]) {
			t.Errorf("%v was given out twice", p.ips)
		}
	}
	if _, err := m.plugin(conf, a.env("DEL")...); err != nil {
		t.Fatal(err)
	}
	gc := strings.Replace(conf, "{", `{"cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0"}],`, 1)
	if _, err := m.plugin(gc, "CNI_COMMAND=GC"); err != nil {
		t.Fatal(err)
	}
	got := m.net.leases.List()
	if len(got) != 1 || !slices.Equal(got[0].IPs, b.ips) {
		t.Errorf("leases are %+v, want only those of b, %v", got, b.ips)
	}
	tell(b.ns)
	expectSeen(t, m.ns, b.ips[0], netip.MustParseAddr("172.30.0.11"))
	if _, err := m.plugin(conf, b.env("DEL")...); err != nil {
		t.Fatal(err)
	}
	if got := m.net.leases.List(); len(got) != 0 {
		t.Errorf("leases are %+v", got)
	}
}

// A full node says so, by an Event with the field, until there is room again.
func TestAFullNodeSaysSo(t *testing.T) {
	c := newCluster(t)
	m := c.nodes[0]
	m.stop()
	c.put(&model.Node{Name: m.name, InternalIPs: []netip.Addr{netip.MustParseAddr("172.30.0.11")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/29")}})
	m.start(c.store)
	var last *pod
	for i := range 4 { // of 8: network, gateway, ingress proxy and broadcast are left out
		last = m.mustAdd(fmt.Sprintf("p%d", i))
	}
	if _, err := m.add("more"); err == nil || !strings.Contains(err.Error(),
		"pod network 10.244.1.0/29 is full: 4 addresses are leased") {
		t.Errorf("the error is %v", err)
	}
	said := func() string { p, _ := m.bad.Load("podnetwork addresses"); return fmt.Sprint(p) }
	if !strings.Contains(said(), "Node node1: spec.podCIDRs: pod network 10.244.1.0/29 is full") {
		t.Errorf("the problem is %s", said())
	}
	if _, err := m.plugin(conf, last.env("DEL")...); err != nil {
		t.Fatal(err)
	}
	m.mustAdd("again")
	if said() != "[]" {
		t.Errorf("the problem is still %s", said())
	}
}

// A pod can send only from its own addresses; others do not leave its link.
func TestAPodCannotSpoof(t *testing.T) {
	t.Parallel()
	c := newClusterWith(t, routes.Auto)
	m := c.nodes[0]
	bad, victim := m.mustAdd("bad"), m.mustAdd("victim")
	far := c.nodes[1].mustAdd("far")
	got := far.ns.ListenPacket("udp", ":99")
	heard := make(chan string, 100)
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := got.ReadFrom(buf)
			if err != nil {
				return
			}
			heard <- from.String()
		}
	}()
	send := func(from, to netip.Addr) error {
		conn, err := bad.ns.DialFrom("udp", netip.AddrPortFrom(from, 0).String(),
			netip.AddrPortFrom(to, 99).String(), time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("x"))
		return err
	}
	lies := []string{"10.244.2.200", "8.8.8.8", "172.30.0.11", victim.ips[0].String(), "fd00:244:0:2::99",
		"2001:db8::1", victim.ips[1].String()}
	for _, lie := range lies {
		a := netip.MustParseAddr(lie)
		bad.ns.Run("ip", "addr", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "eth0")
		to := far.ips[0]
		if a.Is6() {
			to = far.ips[1]
			bad.ns.Run("ip", "addr", "change", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "eth0", "nodad")
		}
		testnet.Eventually(t, 10*time.Second, func() error { return send(a, to) }) // until the address is not tentative
	}
	for _, honest := range bad.ips { // what comes last has not overtaken the others
		to := far.ips[0]
		if honest.Is6() {
			to = far.ips[1]
		}
		if err := send(honest, to); err != nil {
			t.Fatal(err)
		}
		select {
		case from := <-heard:
			if netip.MustParseAddrPort(from).Addr().Unmap() != honest {
				t.Errorf("%s was heard", from)
			}
		case <-time.After(3 * time.Second):
			t.Errorf("from %s nothing was heard", honest)
		}
	}
	// ARP and neighbour discovery: the node goes on sending to the victim's link.
	tell(victim.ns)
	for range 3 {
		bad.ns.Must(func() error { return claim("eth0", victim.ips[0], victim.ips[1]) })
	}
	expectSeen(t, m.ns, victim.ips[0], netip.MustParseAddr("172.30.0.11"))
	expectSeen(t, m.ns, victim.ips[1], netip.MustParseAddr("fd00:30::11"))
	if out := m.ns.Run("nft", "list", "chain", "ip", TableName, "arriving"); !strings.Contains(out, "packets 4 ") {
		t.Errorf("the counter says %s", out)
	}
}

// claim says by ARP and by neighbour discovery that two addresses are at this link:
// an ARP reply (RFC 826) and an unsolicited advertisement (RFC 4861, 4.4), to all.
func claim(link string, v4, v6 netip.Addr) error {
	iface, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	mac := []byte(iface.HardwareAddr)
	arp := slices.Concat(bytes.Repeat([]byte{0xff}, 6), mac, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 2}, mac, v4.AsSlice(),
		mac, v4.AsSlice())
	from := netip.MustParseAddr("fe80::bad").AsSlice()
	to := netip.MustParseAddr("ff02::1").AsSlice()
	na := slices.Concat([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, v6.AsSlice(), []byte{2, 1}, mac)
	sum := checksum(slices.Concat(from, to, []byte{0, 0, 0, byte(len(na)), 0, 0, 0, 58}, na))
	na[2], na[3] = byte(sum>>8), byte(sum)
	nd := slices.Concat([]byte{0x33, 0x33, 0, 0, 0, 1}, mac, []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(na)), 58,
		255}, from, to, na)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, frame := range [][]byte{arp, nd} {
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: iface.Index, Halen: 6}); err != nil {
			return err
		}
	}
	return nil
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
