package podnetwork

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/podnetwork/routes"
	plan "wayleave.dev/podnetwork/wireguard"
)

// dumped are the fields of a peer in `wg show DEVICE dump`.
type dumped struct{ public, endpoint, allowed, handshake, received, sent, keepalive string }

// dump reads a device with WireGuard's own program.
func dump(m *machine, device string) (private, public, port string, peers []dumped) {
	for i, line := range strings.Split(strings.TrimSpace(m.ns.Run("wg", "show", device, "dump")), "\n") {
		f := strings.Split(line, "\t")
		if i == 0 {
			private, public, port = f[0], f[1], f[2]
			continue
		}
		peers = append(peers, dumped{f[0], f[2], f[3], f[4], f[5], f[6], f[7]})
	}
	return private, public, port, peers
}

// TestWgShowsTheKernelsDevices: WireGuard's own program sees the devices, keys, peers and bytes that are published and
// reported, and iproute2 the MTU and the routes, directly and by VXLAN, for both families.
func TestWgShowsTheKernelsDevices(t *testing.T) {
	for _, mode := range []routes.Mode{routes.Direct, routes.VXLAN} {
		t.Run(string(mode), func(t *testing.T) {
			e := newEncrypted()
			c := newEncryptedCluster(t, e, mode)
			if kind := c.nodes[0].net.Config.Encryption.Devices.Kind(); kind != "kernel" {
				t.Skip("the kernel has no WireGuard (module wireguard)")
			}
			testnet.Need(t, "wg")
			awaitSessions(t, c.nodes)
			a, d := c.nodes[0].mustAdd("a"), c.nodes[1].mustAdd("d")
			awaitRoutes(t, a, d)
			serveTransfers(d.ns)
			for _, ip := range d.ips {
				if err := fetch(a.ns, ip); err != nil {
					t.Error(err)
				}
			}
			keys, _, _ := e.board.reader("").Nodes()
			for i, m := range c.nodes {
				other := c.nodes[1-i]
				carried := int64(0)
				for n := range plan.Devices {
					private, public, port, peers := dump(m, plan.Device(n))
					if private == "(none)" || public != keys[m.name].Keys[n].String() || port != fmt.Sprint(51871+n) ||
						len(peers) != 1 {
						t.Fatalf("%s %s: public key %s, want %s; port %s; peers %+v", m.name, plan.Device(n), public,
							keys[m.name].Keys[n], port, peers)
					}
					p := peers[0]
					allowed := strings.Split(p.allowed, ",")
					slices.Sort(allowed)
					want := fmt.Sprintf("[10.244.%[1]d.0/24 172.30.0.1%[1]d/32 "+
						"fd00:244:0:%[1]d::/64 fd00:30::1%[1]d/128]", 2-i)
					if p.public != keys[other.name].Keys[n].String() || fmt.Sprint(allowed) != want ||
						p.endpoint != fmt.Sprintf("172.30.0.1%d:%d", 2-i, 51871+n) || p.handshake == "0" {
						t.Errorf("%s %s has peer %+v, want networks %s of %s", m.name, plan.Device(n), p, want,
							keys[other.name].Keys[n])
					}
					var sum [2]int64
					_, _ = fmt.Sscan(p.received, &sum[0])
					_, _ = fmt.Sscan(p.sent, &sum[1])
					carried += sum[i] // node1 receives, node2 sends
					link := m.ns.Run("ip", "link", "show", plan.Device(n))
					if !strings.Contains(link, "mtu 1440") {
						t.Errorf("%s: %s", m.name, link)
					}
				}
				if carried < 2*transfer {
					t.Errorf("%s: wg shows %d bytes, want %d", m.name, carried, 2*transfer)
				}
			}
			for f := range 2 {
				if out := wayTo(c.nodes[0], a.ips[f], d.ips[f]); !strings.Contains(out, "dev wayleave-wg") {
					t.Errorf("the way to %s is %s", d.ips[f], out)
				}
			}
		})
	}
}

// wayTo is the route that packets of a pod take from its node.
func wayTo(m *machine, from, to netip.Addr) string {
	return m.ns.Run("ip", "route", "get", to.String(), "from", from.String(), "iif", end(m))
}

// TestEncryptionOverRoutesOfBGP: routes that nodes learn, lose and learn again do not matter to encrypted packets, on
// one segment and behind a router; nothing is lost, and nothing is plain.
func TestEncryptionOverRoutesOfBGP(t *testing.T) {
	e := newEncrypted()
	s := newSegmentsOf(t, routes.BGP, families{"dual", true, true}, 1500, plugin(t),
		func(m *machine) { m.encrypt = e })
	w := newTap(t, s.nodes...)
	awaitSessions(t, s.nodes)
	var pods []*pod
	for i, m := range s.nodes {
		n := *s.model(m)
		n.Ready = true
		s.put(&n)
		pods = append(pods, m.mustAdd(fmt.Sprintf("pod%d", i+1)))
	}
	w.watch(pods...)
	for _, to := range pods[1:3] {
		awaitRoutes(t, pods[0], to)
		serveTransfers(to.ns)
		for f, ip := range to.ips {
			if err := fetch(pods[0].ns, ip); err != nil {
				t.Error(err)
			}
			if out := wayTo(s.nodes[0], pods[0].ips[f], ip); !strings.Contains(out, "dev wayleave-wg") {
				t.Errorf("the way to %s is %s", ip, out)
			}
		}
	}
	metered(t, pods[0], pods[1:3], 7000, func() {
		if err := s.store.SetBGPRoutes(nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		s.nodes[0].stop()
		s.nodes[0].start(s.store)
		learnAll(t, s.store, "172.30.1.1", "172.30.2.1", "fd00:30:1::1", "fd00:30:2::1")
		time.Sleep(500 * time.Millisecond)
		s.nodes[2].stop()
		s.nodes[2].start(s.store)
	})
	w.expectNone()
}

// TestPortsOfNodesWhileEncrypting: a pod reaches a pod of another node by a port of that node. The answer is the pod's,
// so it is encrypted, and has the node's address.
func TestPortsOfNodesWhileEncrypting(t *testing.T) {
	c := newEncryptedCluster(t, newEncrypted(), routes.Direct)
	awaitSessions(t, c.nodes)
	a := c.nodes[0].mustAdd("a")
	d, err := c.nodes[1].addWith("d", ports(`{"hostPort":8000,"containerPort":80}`))
	if err != nil {
		t.Fatal(err)
	}
	tell(d.ns)
	for _, to := range []string{"172.30.0.12", "fd00:30::12"} {
		testnet.Eventually(t, 10*time.Second, func() error {
			_, err := who(a.ns, netip.AddrPortFrom(netip.MustParseAddr(to), 8000))
			return err
		})
	}
}
