package conformance

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"wayleave.dev/model"
)

const ext4, ext6 = "203.0.113.7", "2001:db8:7::7"

func ext(is6 bool) netip.AddrPort {
	if is6 {
		return netip.AddrPortFrom(netip.MustParseAddr(ext6), 80)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(ext4), 80)
}

// dropped requires silence: no answer and no refusal.
func dropped(t *testing.T, c Client, network string, to netip.AddrPort) {
	t.Helper()
	pod, _, err := c.ask(network, to, patience)
	if !errors.Is(err, os.ErrDeadlineExceeded) && !timedOut(err) {
		t.Errorf("%s to %s by %s: %q answered, %v; want silence", c.Name, to, network, pod, err)
	}
}

func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// routed gives the external client a route to the external addresses through a node.
func (w *World) routed(node int) (undo func()) {
	for i, a := range []string{ext4 + "/32", ext6 + "/128"} {
		w.Outside.Route(a, w.Nodes[node].Addrs[i].String())
	}
	return func() {
		w.Outside.Run("ip", "route", "del", ext4+"/32")
		w.Outside.Run("ip", "-6", "route", "del", ext6+"/128")
	}
}

// sticky is a Service with session affinity, at addresses and a node port that no other test uses: IPVS remembers UDP
// flows for five minutes, and a reused client port would match such a flow.
func sticky() (svc *model.Service, vip func(is6 bool) netip.AddrPort, port uint16) {
	port = nodePort + 9
	svc = web(model.ServicePort{Name: "tcp", Protocol: model.TCP, Port: 80, NodePort: port},
		model.ServicePort{Name: "udp", Protocol: model.UDP, Port: 80, NodePort: port})
	svc.Name.Name, svc.Affinity = "sticky", time.Hour
	svc.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.53"), netip.MustParseAddr("fd00:96::53")}
	return svc, func(is6 bool) netip.AddrPort { return netip.AddrPortFrom(pick(svc.ClusterIPs, is6), 80) }, port
}

// affinity: a client keeps its endpoint. That 12 connections meet the same one of three endpoints by chance has a
// probability of 1 in 177,147.
func affinity(t *testing.T, w *World) {
	svc, vip, port := sticky()
	defer w.Remove(svc.Name)
	w.Set(svc, w.Pods[1], w.Pods[2], w.Pods[3])
	for _, c := range w.Clients() {
		for _, what := range []string{"VIP", "node port"} {
			if c.Name == "outside" && what == "VIP" {
				continue
			}
			t.Run("from "+c.Name+" by "+what, func(t *testing.T) {
				each(t, func(t *testing.T, network string, is6 bool) {
					to := vip(is6)
					if what == "node port" {
						to = netip.AddrPortFrom(w.nodeAddr(0, is6).Addr(), port)
					}
					w.forgetFlows()
					sticks(t, c, network, to, 12)
				})
			})
		}
	}
	t.Run("not to one endpoint for all", func(t *testing.T) {
		w.Set(svc, w.Pods[1], w.Pods[2], w.Pods[3])
		seen := map[string]bool{}
		for _, c := range w.Clients()[:4] {
			each(t, func(t *testing.T, network string, is6 bool) {
				if pod, _, err := c.Ask(network, vip(is6)); err == nil {
					seen[pod] = true
				}
			})
		}
		if len(seen) < 2 { // 16 choices
			t.Errorf("all clients are at %v", seen)
		}
	})
}

// forgetFlows removes tracked flows, so that clients count as new.
func (w *World) forgetFlows() {
	for _, n := range w.Nodes {
		n.NS.ForgetFlows()
	}
}

func sticks(t *testing.T, c Client, network string, to netip.AddrPort, n int) string {
	t.Helper()
	first := ""
	for range n {
		pod, _, err := c.Ask(network, to)
		if err != nil {
			t.Fatalf("%s to %s by %s: %v", c.Name, to, network, err)
		}
		if first == "" {
			first = pod
		}
		if pod != first {
			t.Fatalf("%s to %s by %s was at %s and then at %s", c.Name, to, network, first, pod)
		}
	}
	return first
}

// affinityChanges: only clients of a removed endpoint are reassigned, once; without affinity connections are spread
// again.
func affinityChanges(t *testing.T, w *World) {
	svc, vip, _ := sticky()
	plain := *svc
	plain.Affinity = 0
	defer w.Remove(svc.Name)
	c := w.Clients()[0]
	each(t, func(t *testing.T, network string, is6 bool) {
		w.Set(svc, w.Pods[1:]...)
		w.forgetFlows()
		first := sticks(t, c, network, vip(is6), 6)
		var rest []*Pod
		for _, p := range w.Pods[1:] {
			if p.Name != first {
				rest = append(rest, p)
			}
		}
		w.Set(svc, rest...)
		second := sticks(t, c, network, vip(is6), 12)
		if second == first {
			t.Fatalf("%s is no endpoint any more", first)
		}
		w.Set(svc, w.Pods[1:]...)
		if third := sticks(t, c, network, vip(is6), 12); third != second {
			t.Errorf("an endpoint that came took the client from %s to %s", second, third)
		}
		w.Set(&plain, w.Pods[1:]...)
		w.forgetFlows()
		seen := map[string]bool{}
		for range 40 {
			pod, _, err := c.Ask(network, vip(is6))
			if err != nil {
				t.Fatal(err)
			}
			seen[pod] = true
		}
		if len(seen) != 3 {
			t.Errorf("without affinity all connections are at %v", seen)
		}
	})
}

// Lingerer is a Mode that remembers a client for a time after the affinity has ended.
type Lingerer interface{ Linger() time.Duration }

// affinityEnds: a client that was idle for longer than the timeout may get any endpoint. That it gets the same one
// twelve times has a probability of 1 in 4096.
func affinityEnds(t *testing.T, w *World) {
	svc := web(model.ServicePort{Name: "tcp", Protocol: model.TCP, Port: 80})
	// The Service has another address than before: IPVS keeps the timeout that was set when the client connected.
	svc.Name.Name, svc.ClusterIPs = "away", []netip.Addr{netip.MustParseAddr("10.96.0.52")}
	to := netip.AddrPortFrom(svc.ClusterIPs[0], 80)
	svc.Affinity = time.Second
	w.Set(svc, w.Pods[1], w.Pods[2])
	defer w.Remove(svc.Name)
	c := w.Clients()[0]
	first := sticks(t, c, "tcp", to, 3)
	away, tries := 1200*time.Millisecond, 12
	if l, ok := w.modes[0].(Lingerer); ok {
		away, tries = away+l.Linger(), 2
	}
	for range tries {
		time.Sleep(away) // the timeout itself is what is tested
		pod, _, err := c.Ask("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		if pod != first {
			return
		}
	}
	t.Errorf("always %s", first)
}

// externalIPs: external addresses are served on every node, to all clients; so are addresses of a load balancer,
// without a detour through it. Endpoints see external clients by the address of the node that they used.
func externalIPs(t *testing.T, w *World) {
	for _, kind := range []string{"external IP", "load balancer"} {
		svc := web()
		svc.Type = model.LoadBalancer
		list := []netip.Addr{ext(false).Addr(), ext(true).Addr()}
		if kind == "external IP" {
			svc.ExternalIPs = list
		} else {
			svc.LoadBalancerIPs = list
		}
		w.Set(svc, w.Pods[2])
		for node := range w.Nodes {
			undo := w.routed(node)
			for _, c := range w.Clients() {
				t.Run(fmt.Sprintf("%s from %s by node%d", kind, c.Name, node+1), func(t *testing.T) {
					each(t, func(t *testing.T, network string, is6 bool) {
						pod, seen, err := c.Ask(network, ext(is6))
						if err != nil || pod != "pod2a" {
							t.Fatalf("%q answered, %v", pod, err)
						}
						if c.Name == "outside" && node == 0 && seen != pick(w.Nodes[0].Addrs, is6) {
							t.Errorf("it saw %s instead of the node", seen)
						}
					})
				})
			}
			undo()
		}
		// If the address can be a node's own, other programs may serve it, too.
		t.Run(kind+", no endpoints", func(t *testing.T) {
			w.Set(svc)
			defer w.routed(0)()
			for _, i := range []int{0, 2, 4} {
				each(t, func(t *testing.T, network string, is6 bool) { refused(t, w.Clients()[i], network, ext(is6)) })
			}
		})
	}
}

// externalLocal: external clients reach endpoints on the node that they use, and keep their own address; clients in the
// cluster reach any endpoint.
func externalLocal(t *testing.T, w *World) {
	svc := web()
	svc.Type, svc.ExternalLocal = model.LoadBalancer, true
	svc.LoadBalancerIPs = []netip.Addr{ext(false).Addr(), ext(true).Addr()}
	w.Set(svc, w.Pods[1], w.Pods[2]) // one on each node
	own := []string{"pod1b", "pod2a"}
	out := w.Clients()[4]
	for node := range w.Nodes {
		undo := w.routed(node)
		t.Run(fmt.Sprintf("from outside to node%d", node+1), func(t *testing.T) {
			each(t, func(t *testing.T, network string, is6 bool) {
				for _, to := range []netip.AddrPort{w.nodeAddr(node, is6), ext(is6)} {
					for range 6 {
						pod, seen, err := out.Ask(network, to)
						if err != nil || pod != own[node] || seen != pick(out.IPs, is6) {
							t.Fatalf("at %s %q answered and saw %s, %v", to, pod, seen, err)
						}
					}
				}
			})
		})
		undo()
	}
	for i, c := range w.Clients()[:4] {
		t.Run("from "+c.Name, func(t *testing.T) {
			each(t, func(t *testing.T, network string, is6 bool) {
				for _, to := range []netip.AddrPort{ext(is6), w.nodeAddr(i%2, is6)} {
					seen := map[string]bool{}
					for range 24 {
						pod, _, err := c.Ask(network, to)
						if err != nil {
							t.Fatalf("at %s: %v", to, err)
						}
						seen[pod] = true
					}
					if len(seen) != 2 {
						t.Errorf("at %s only %v answered", to, seen)
					}
				}
			})
		})
	}
}

// externalLocalAway: without an endpoint on the node, packets of external clients are dropped, so that a load balancer
// notices; clients in the cluster are served. Without any endpoint, all clients are refused.
func externalLocalAway(t *testing.T, w *World) {
	svc := web()
	svc.Type, svc.ExternalLocal = model.LoadBalancer, true
	svc.LoadBalancerIPs = []netip.Addr{ext(false).Addr(), ext(true).Addr()}
	w.Set(svc, w.Pods[2])
	defer w.routed(0)()
	out := w.Clients()[4]
	each(t, func(t *testing.T, network string, is6 bool) {
		dropped(t, out, network, w.nodeAddr(0, is6))
		dropped(t, out, network, ext(is6))
		for _, i := range []int{0, 2} {
			for _, to := range []netip.AddrPort{w.nodeAddr(0, is6), ext(is6)} {
				if pod, _, err := w.Clients()[i].Ask(network, to); err != nil || pod != "pod2a" {
					t.Errorf("%s to %s: %q, %v", w.Clients()[i].Name, to, pod, err)
				}
			}
		}
	})
	w.Set(svc)
	each(t, func(t *testing.T, network string, is6 bool) {
		for _, i := range []int{0, 2, 4} {
			refused(t, w.Clients()[i], network, w.nodeAddr(0, is6))
			refused(t, w.Clients()[i], network, ext(is6))
		}
	})
}

// internalLocal: the ClusterIP leads only to endpoints on the client's node.
func internalLocal(t *testing.T, w *World) {
	svc := web()
	svc.InternalLocal = true
	own := map[int]string{0: "pod1b", 1: "pod2a", 2: "pod1b", 3: "pod2a"}
	w.Set(svc, w.Pods[1], w.Pods[2])
	for i, c := range w.Clients()[:4] {
		t.Run("from "+c.Name, func(t *testing.T) {
			each(t, func(t *testing.T, network string, is6 bool) {
				for range 8 {
					if pod, _, err := c.Ask(network, vip(is6)); err != nil || pod != own[i] {
						t.Fatalf("%q answered, %v", pod, err)
					}
				}
			})
		})
	}
	t.Run("node ports lead to any", func(t *testing.T) {
		w.Set(svc, w.Pods[2])
		each(t, func(t *testing.T, network string, is6 bool) {
			if pod, _, err := w.Clients()[4].Ask(network, w.nodeAddr(0, is6)); err != nil || pod != "pod2a" {
				t.Errorf("%q answered, %v", pod, err)
			}
		})
	})
	t.Run("none on the node", func(t *testing.T) {
		w.Set(svc, w.Pods[2])
		each(t, func(t *testing.T, network string, is6 bool) { dropped(t, w.Clients()[0], network, vip(is6)) })
	})
	t.Run("none at all", func(t *testing.T) {
		w.Set(svc)
		each(t, func(t *testing.T, network string, is6 bool) { refused(t, w.Clients()[0], network, vip(is6)) })
	})
}

// sourceRanges: they restrict the load balancer's address, but neither node ports nor the ClusterIP.
func sourceRanges(t *testing.T, w *World) {
	out, pod := w.Clients()[4], w.Clients()[0]
	svc := web()
	svc.Type = model.LoadBalancer
	svc.LoadBalancerIPs = []netip.Addr{ext(false).Addr(), ext(true).Addr()}
	defer w.routed(0)()
	for _, row := range []struct {
		name         string
		ranges       []string
		out, pod     bool
		outAt, podAt string
	}{
		{name: "of the client outside", ranges: []string{"172.30.0.96/27", "fd00:30::/64"}, out: true},
		{name: "of pods", ranges: []string{"10.244.0.0/16", "fd00:244::/32"}, pod: true},
		{name: "of both", ranges: []string{"172.30.0.99/32", "10.244.1.0/24", "fd00:30::99/128", "fd00:244:0:1::/64"},
			out: true, pod: true},
		{name: "of no client here", ranges: []string{"198.51.100.0/24", "2001:db8:1::/48"}},
		{name: "of everybody", ranges: []string{"0.0.0.0/0", "::/0"}, out: true, pod: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			svc := *svc
			for _, r := range row.ranges {
				svc.SourceRanges = append(svc.SourceRanges, netip.MustParsePrefix(r))
			}
			w.Set(&svc, w.Pods[2])
			each(t, func(t *testing.T, network string, is6 bool) {
				for _, x := range []struct {
					c    Client
					may  bool
					name string
				}{{out, row.out, "outside"}, {pod, row.pod, "a pod"}} {
					if !x.may {
						dropped(t, x.c, network, ext(is6))
					} else if _, _, err := x.c.Ask(network, ext(is6)); err != nil {
						t.Errorf("%s: %v", x.name, err)
					}
				}
				if _, _, err := out.Ask(network, w.nodeAddr(0, is6)); err != nil {
					t.Errorf("the node port: %v", err)
				}
			})
		})
	}
}

// hints: each node uses the endpoints that are assigned to it or its zone. Hints that are incomplete, or leave a node
// without endpoints, are ignored (KEP-2433, KEP-3015).
func hints(t *testing.T, w *World) {
	ep := func(zones, nodes string) model.Endpoint {
		e := model.Endpoint{Ready: true, Serving: true}
		if zones != "" {
			e.ForZones = []string{zones}
		}
		if nodes != "" {
			e.ForNodes = []string{nodes}
		}
		return e
	}
	for _, row := range []struct {
		name    string
		a, b    model.Endpoint // of pod1b and pod2a
		on1     []string
		on2     []string
		removed bool
	}{
		{name: "zones", a: ep("zone1", ""), b: ep("zone2", ""), on1: []string{"pod1b"}, on2: []string{"pod2a"}},
		{name: "zones crosswise", a: ep("zone2", ""), b: ep("zone1", ""), on1: []string{"pod2a"},
			on2: []string{"pod1b"}},
		{name: "nodes before zones", a: ep("zone1", "node2"), b: ep("zone2", "node1"), on1: []string{"pod2a"},
			on2: []string{"pod1b"}},
		{name: "one endpoint has none", a: ep("zone1", ""), b: ep("", ""), on1: []string{"pod1b", "pod2a"},
			on2: []string{"pod1b", "pod2a"}},
		{name: "none for a zone", a: ep("zone1", ""), b: ep("zone1", ""), on1: []string{"pod1b", "pod2a"},
			on2: []string{"pod1b", "pod2a"}},
		{name: "a node has none, its zone has", a: ep("zone1", "node1"), b: ep("zone2", "node1"),
			on1: []string{"pod1b", "pod2a"}, on2: []string{"pod2a"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			w.SetEndpoints(web(), []*Pod{w.Pods[1], w.Pods[2]}, []model.Endpoint{row.a, row.b})
			w.forgetFlows()
			for i, want := range [][]string{row.on1, row.on2} {
				c := w.Clients()[i]
				each(t, func(t *testing.T, network string, is6 bool) {
					seen := map[string]bool{}
					for range 16 {
						pod, _, err := c.Ask(network, vip(is6))
						if err != nil {
							t.Fatal(err)
						}
						seen[pod] = true
					}
					for _, p := range want {
						if !seen[p] || len(seen) != len(want) {
							t.Errorf("from %s %v answered, want %v", c.Name, seen, want)
						}
					}
				})
			}
		})
	}
}

// oneFamily: a single-family Service, and its node port, are not served in the other family.
func oneFamily(t *testing.T, w *World) {
	for _, only6 := range []bool{false, true} {
		svc := web()
		svc.ClusterIPs = []netip.Addr{vip(only6).Addr()}
		w.Set(svc, w.Pods[2])
		c := w.Clients()[0]
		for _, network := range []string{"tcp", "udp"} {
			t.Run(fmt.Sprintf("%s, IPv6 %v", network, only6), func(t *testing.T) {
				for _, to := range []netip.AddrPort{vip(only6), w.nodeAddr(0, only6)} {
					if pod, _, err := c.Ask(network, to); err != nil || pod != "pod2a" {
						t.Errorf("at %s %q answered, %v", to, pod, err)
					}
				}
				for _, to := range []netip.AddrPort{vip(!only6), w.nodeAddr(0, !only6)} {
					if pod, _, err := c.ask(network, to, patience); err == nil {
						t.Errorf("at %s of the other family %q answered", to, pod)
					}
				}
			})
		}
	}
}

// otherProxy: a Service with the label service-proxy-name is left to that proxy.
func otherProxy(t *testing.T, w *World) {
	svc := web()
	w.Set(svc, w.Pods[2])
	other := *svc
	other.OtherProxy = true
	w.Set(&other, w.Pods[2])
	each(t, func(t *testing.T, network string, is6 bool) {
		for _, to := range []netip.AddrPort{vip(is6), w.nodeAddr(0, is6)} {
			if pod, _, err := w.Clients()[0].ask(network, to, patience); err == nil {
				t.Errorf("at %s %q answered", to, pod)
			}
		}
	})
}

// notProxied: an EndpointSlice with the label service.kubernetes.io/headless is used by DNS only.
func notProxied(t *testing.T, w *World) {
	svc := web()
	mark := func(is bool) {
		var slices []*model.EndpointSlice
		for s := range w.Store.Snapshot().EndpointSlices(svc.Name) {
			own := *s
			own.NotProxied = is
			slices = append(slices, &own)
		}
		if err := w.Store.Write(func(tx *model.Writer) {
			for _, s := range slices {
				tx.PutEndpointSlice(s)
			}
		}); err != nil {
			t.Fatal(err)
		}
		w.Program()
	}
	w.Set(svc, w.Pods[2])
	each(t, func(t *testing.T, network string, is6 bool) {
		c := w.Clients()[0]
		mark(true)
		for _, to := range []netip.AddrPort{vip(is6), w.nodeAddr(0, is6)} {
			refused(t, c, network, to)
		}
		mark(false)
		if pod, _, err := c.Ask(network, vip(is6)); err != nil || pod != "pod2a" {
			t.Errorf("without the label %q answered, %v", pod, err)
		}
	})
}

// noNodePort: a load balancer without node ports (allocateLoadBalancerNodePorts false).
func noNodePort(t *testing.T, w *World) {
	svc := web(model.ServicePort{Name: "tcp", Protocol: model.TCP, Port: 80}, model.ServicePort{Name: "udp",
		Protocol: model.UDP, Port: 80})
	svc.Type = model.LoadBalancer
	svc.LoadBalancerIPs = []netip.Addr{ext(false).Addr(), ext(true).Addr()}
	w.Set(svc, w.Pods[2])
	defer w.routed(1)()
	out := w.Clients()[4]
	each(t, func(t *testing.T, network string, is6 bool) {
		if pod, _, err := out.Ask(network, ext(is6)); err != nil || pod != "pod2a" {
			t.Errorf("%q answered, %v", pod, err)
		}
		refused(t, out, network, w.nodeAddr(1, is6))
	})
}

// policyChanges: traffic policies change while connections are open; the connections keep their endpoints.
func policyChanges(t *testing.T, w *World) {
	svc := web()
	w.Set(svc, w.Pods[2])
	out := w.Clients()[4]
	each(t, func(t *testing.T, network string, is6 bool) {
		w.Set(svc, w.Pods[2])
		conn, err := out.NS.Dial(network, w.nodeAddr(1, is6).String(), patience)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if pod, _, err := Say(conn); err != nil || pod != "pod2a" {
			t.Fatalf("%q answered, %v", pod, err)
		}
		local := *svc
		local.ExternalLocal = true
		w.Set(&local, w.Pods[2])
		if pod, _, err := Say(conn); err != nil || pod != "pod2a" {
			t.Errorf("after the change the live connection: %q, %v", pod, err)
		}
		if pod, seen, err := out.Ask(network, w.nodeAddr(1, is6)); err != nil || pod != "pod2a" ||
			seen != pick(out.IPs, is6) {
			t.Errorf("after the change a new one: %q saw %s, %v", pod, seen, err)
		}
		w.Set(svc, w.Pods[2])
		if pod, seen, err := out.Ask(network, w.nodeAddr(0, is6)); err != nil || pod != "pod2a" ||
			seen == pick(out.IPs, is6) {
			t.Errorf("after the change back: %q saw %s, %v", pod, seen, err)
		}
	})
}

// localhost: only a node's own processes reach node ports on 127.0.0.1.
func localhost(t *testing.T, w *World) {
	w.Set(web(), w.Pods[1], w.Pods[2])
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), nodePort)
	for i, c := range w.Clients()[2:4] {
		for _, network := range []string{"tcp", "udp"} {
			t.Run(fmt.Sprintf("%s from %s", network, c.Name), func(t *testing.T) {
				seen := map[string]bool{}
				for range 24 {
					pod, saw, err := c.Ask(network, to)
					if err != nil || saw != w.Nodes[i].Addrs[0] && saw != netip.MustParseAddr("169.254.1.1") {
						t.Fatalf("%q answered and saw %s, %v", pod, saw, err)
					}
					seen[pod] = true
				}
				if len(seen) != 2 {
					t.Errorf("only %v answered", seen)
				}
			})
		}
	}
	t.Run("from outside", func(t *testing.T) {
		w.Outside.Sysctl("net/ipv4/conf/all/route_localnet", "1")
		defer w.Outside.Sysctl("net/ipv4/conf/all/route_localnet", "0")
		w.Outside.Run("ip", "rule", "add", "pref", "1", "lookup", "local") // behind ours
		w.Outside.Run("ip", "rule", "del", "pref", "0")
		w.Outside.Run("ip", "route", "add", "127.0.0.1/32", "via", w.Nodes[0].Addrs[0].String(), "table", "99")
		w.Outside.Run("ip", "rule", "add", "pref", "0", "to", "127.0.0.1", "lookup", "99")
		defer func() {
			w.Outside.Run("ip", "rule", "add", "pref", "0", "lookup", "local")
			w.Outside.Run("ip", "rule", "del", "pref", "0", "to", "127.0.0.1", "lookup", "99")
			w.Outside.Run("ip", "rule", "del", "pref", "1", "lookup", "local")
		}()
		for _, network := range []string{"tcp", "udp"} {
			dropped(t, w.Clients()[4], network, to)
		}
	})
}

// externalLocalMoves: an external UDP client moves when its endpoint is removed; when none is left on the node, it is
// no longer served.
func externalLocalMoves(t *testing.T, w *World) {
	svc := web()
	svc.Type, svc.ExternalLocal = model.LoadBalancer, true
	svc.LoadBalancerIPs = []netip.Addr{ext(false).Addr(), ext(true).Addr()}
	defer w.routed(1)()
	for _, is6 := range []bool{false, true} {
		for _, to := range []netip.AddrPort{w.nodeAddr(1, is6), ext(is6)} {
			t.Run(to.String(), func(t *testing.T) {
				w.Set(svc, w.Pods[2])
				udp, err := w.Outside.Dial("udp", to.String(), patience)
				if err != nil {
					t.Fatal(err)
				}
				defer udp.Close()
				if pod, _, err := Say(udp); err != nil || pod != "pod2a" {
					t.Fatalf("%q answered, %v", pod, err)
				}
				w.Set(svc, w.Pods[3])
				if pod, _, err := Say(udp); err != nil || pod != "pod2b" {
					t.Errorf("after its endpoint was removed: %q, %v", pod, err)
				}
				w.Set(svc, w.Pods[0])
				if pod, _, err := say(udp, patience); err == nil {
					t.Errorf("with no endpoint on the node %q answered", pod)
				}
			})
		}
	}
}
