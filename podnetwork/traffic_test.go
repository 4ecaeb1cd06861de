package podnetwork

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/lossmeter"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/routes"
)

// rates are those of datagrams and of connections, in each second. An emulated processor (hack/test-vm without KVM) has
// no time for more: it would lose packets to full queues.
func rates() (datagrams, connections int) {
	if os.Getenv("WAYLEAVE_TEST_EMULATED") != "" {
		return 20, 2
	}
	return 300, 0 // the meter's own
}

// leastSent is how many messages of each kind a disturbance has to meet.
const leastSent = 5

// metered runs traffic of every kind from one pod to others while fn disturbs, and
// wants nothing lost.
func metered(t *testing.T, from *pod, to []*pod, port uint16, fn func()) {
	t.Helper()
	var probes []lossmeter.Probe
	datagrams, connections := rates()
	for _, p := range to {
		for _, ip := range p.ips {
			addr := netip.AddrPortFrom(ip, port).String()
			l, c := p.ns.Listen("tcp", addr), p.ns.ListenPacket("udp", addr)
			go func() { _ = lossmeter.ServeTCP(l) }()
			go func() { _ = lossmeter.ServeUDP(c) }()
			// Late is not lost on a busy machine: nobody repeats a datagram, and TCP says what it sent again.
			const late = 30 * time.Second
			probes = append(probes, lossmeter.Probe{Kind: "udp", Target: addr, Rate: datagrams, Patience: late},
				lossmeter.Probe{Kind: "tcp", Target: addr, Patience: late},
				lossmeter.Probe{Kind: "connect", Target: addr, Rate: connections, Patience: late})
		}
	}
	places := map[string]*testnet.NS{"the sender": from.ns, "the sender's node": from.m.ns}
	for _, p := range to {
		places["the receiver "+p.id], places["the receiver's node "+p.m.name] = p.ns, p.m.ns
	}
	before := map[string]counters{}
	for name, ns := range places {
		before[name] = readCounters(ns)
	}
	ctx, cancel := context.WithCancel(t.Context())
	type outcome struct {
		r   lossmeter.Report
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		r, err := lossmeter.Run(ctx, from.ns.Dial, probes)
		done <- outcome{r, err}
	}()
	began := time.Now()
	time.Sleep(200 * time.Millisecond) // traffic before, and below after the change
	fn()
	time.Sleep(300 * time.Millisecond)
	if connections > 0 {
		time.Sleep(time.Until(began.Add(leastSent * time.Second / time.Duration(connections))))
	}
	cancel()
	o := <-done
	if o.err != nil {
		t.Fatal(o.err)
	}
	if o.r.Lost() > 0 {
		t.Errorf("lost:\n%s", o.r)
		for name, ns := range places {
			t.Logf("%s counted: %s", name, readCounters(ns).since(before[name]))
		}
	}
	for _, c := range o.r.Counts {
		if c.Sent < leastSent {
			t.Errorf("%s sent only %d", c.Kind, c.Sent)
		}
	}
}

// TestRoutingChangesUnderTraffic: the setting is changed node by node, as a rolling
// restart does it, and back; nothing is lost.
func TestRoutingChangesUnderTraffic(t *testing.T) {
	c := newClusterWith(t, routes.Direct)
	a, d := c.nodes[0].mustAdd("a"), c.nodes[1].mustAdd("d")
	for i, mode := range []routes.Mode{routes.VXLAN, routes.Auto, routes.VXLAN, routes.Direct, routes.BGP,
		routes.VXLAN, routes.BGP, routes.Direct} {
		t.Run(string(mode), func(t *testing.T) {
			metered(t, a, []*pod{d}, uint16(7000+i), func() {
				for _, m := range c.nodes {
					m.stop()
					m.mode = mode
					m.start(c.store)
				}
			})
			dev := c.nodes[0].ns.Run("ip", "route", "get", d.ips[0].String(), "from", a.ips[0].String(), "iif",
				end(c.nodes[0]))
			if got := strings.Contains(dev, routes.Device); got != (mode == routes.VXLAN) {
				t.Errorf("the way is %s", dev)
			}
		})
	}
}

// TestRoutesOfBGPChangeUnderTraffic: sessions end and come back, on one segment and behind a router, and nodes restart
// between; nothing is lost.
func TestRoutesOfBGPChangeUnderTraffic(t *testing.T) {
	s := newSegments(t, routes.BGP, families{"dual", true, true}, 1500, plugin(t))
	var pods []*pod
	for i, m := range s.nodes {
		n := *s.model(m)
		n.Ready = true
		s.put(&n)
		pods = append(pods, m.mustAdd(fmt.Sprintf("pod%d", i+1)))
	}
	metered(t, pods[0], []*pod{pods[1], pods[2]}, 7000, func() {
		for range 2 {
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
		}
	})
}

// end is the node's end of a pod's link.
func end(m *machine) string {
	names, _ := m.net.host.Names()
	return names[0]
}

// TestAgentRestartsUnderTraffic, direct and by VXLAN at once: a pod on the same
// segment and one behind the router.
func TestAgentRestartsUnderTraffic(t *testing.T) {
	s := newSegments(t, routes.Auto, families{"dual", true, true}, 1500, plugin(t))
	var pods []*pod
	for i, m := range s.nodes {
		pods = append(pods, m.mustAdd(fmt.Sprintf("pod%d", i+1)))
	}
	metered(t, pods[0], []*pod{pods[1], pods[2]}, 7000, func() {
		for range 3 {
			for _, m := range s.nodes {
				m.stop()
				m.start(s.store)
			}
		}
	})
}

// TestALostNodeIsReRouted: a node that comes back with another address, on the other
// segment, is reached again within the fail-over bound.
func TestALostNodeIsReRouted(t *testing.T) {
	s := newSegments(t, routes.Auto, families{"dual", true, true}, 1500, plugin(t))
	from, to := s.nodes[0].mustAdd("from"), s.nodes[2].mustAdd("to")
	tell(to.ns)
	expectSeen(t, from.ns, to.ips[0], from.ips[0])
	m := s.nodes[2]
	node := *s.model(m)
	m.ns.Run("sh", "-c", "ip addr flush dev eth0 scope global; ip -6 route del default")
	m.ns.Addr("eth0", "172.30.2.77/24")
	m.ns.Addr("eth0", "fd00:30:2::77/64")
	m.ns.Route("0.0.0.0/0", "172.30.2.1")
	m.ns.Route("::/0", "fd00:30:2::1")
	node.InternalIPs = []netip.Addr{netip.MustParseAddr("172.30.2.77"), netip.MustParseAddr("fd00:30:2::77")}
	start := time.Now()
	s.put(&node)
	for f := range 2 {
		expectSeen(t, from.ns, to.ips[f], from.ips[f]) // fails after 5 s
	}
	t.Logf("re-routed within %s", time.Since(start).Round(time.Millisecond))
	if err := s.store.Write(func(w *model.Writer) { w.Delete(model.NodeKind, model.Name{Name: m.name}) }); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		out := s.nodes[0].ns.Run("sh", "-c",
			"ip route; ip -6 route; ip route show table 87; bridge fdb show dev wayleave-vxlan")
		if strings.Contains(out, "10.244.3.") || strings.Contains(out, "172.30.2.77") {
			return fmt.Errorf("the node that is gone is still routed to: %s", out)
		}
		return nil
	})
}
