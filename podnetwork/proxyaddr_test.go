package podnetwork

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	policynft "wayleave.dev/networkpolicy/nftables"
	"wayleave.dev/podnetwork/ipam"
	"wayleave.dev/podnetwork/routes"
)

// whoFrom is who from an address of the namespace.
func whoFrom(ns *testnet.NS, from netip.Addr, to netip.AddrPort) (netip.Addr, error) {
	c, err := ns.DialFrom("tcp", netip.AddrPortFrom(from, 0).String(), to.String(), time.Second)
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return netip.Addr{}, err
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		return netip.Addr{}, err
	}
	ap, err := netip.ParseAddrPort(string(buf[:n]))
	return ap.Addr().Unmap(), err
}

// hasProxy waits until the node has these addresses for its proxy, and no other.
func (m *machine) hasProxy(want ...string) {
	m.t.Helper()
	testnet.Eventually(m.t, 5*time.Second, func() error {
		if got := fmt.Sprint(proxyAddresses(m.net)); got != fmt.Sprint(want) {
			return fmt.Errorf("addresses for the proxy are %s, want %v", got, want)
		}
		out := m.ns.Run("ip", "-o", "addr", "show", "dev", "lo")
		for _, a := range []string{"10.244.1.254/32", "fd00:244:0:1::ffff/128"} {
			addr, _, _ := strings.Cut(a, "/")
			if strings.Contains(out, a) != slices.Contains(want, addr) {
				return fmt.Errorf("the loopback has\n%s, want %v", out, want)
			}
		}
		return nil
	})
}

// What the proxy sends from its addresses reaches pods of both nodes, nodes, and the world
// outside, and what they answer comes back. What the node sends otherwise is from the
// addresses of before.
func TestTheProxyReachesPodsFromItsAddress(t *testing.T) {
	for _, mode := range []routes.Mode{routes.Direct, routes.VXLAN} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			c := newClusterWith(t, mode)
			m := c.nodes[0]
			m.stop()
			m.ingress = true
			m.start(c.store)
			m.hasProxy("10.244.1.254", "fd00:244:0:1::ffff")
			a, d := m.mustAdd("a"), c.nodes[1].mustAdd("d")
			tell(a.ns)
			tell(d.ns)
			tell(c.nodes[1].ns)
			tell(c.outside)
			me, _ := c.store.Snapshot().Node(m.name)
			other, _ := c.store.Snapshot().Node(c.nodes[1].name)
			outside := []netip.Addr{netip.MustParseAddr("172.30.0.99"), netip.MustParseAddr("fd00:30::99")}
			for f, from := range me.ProxyAddrs() {
				for to, want := range map[netip.Addr]netip.Addr{a.ips[f]: from, d.ips[f]: from,
					other.InternalIPs[f]: from, outside[f]: me.InternalIPs[f]} {
					testnet.Eventually(t, 5*time.Second, func() error {
						seen, err := whoFrom(m.ns, from, netip.AddrPortFrom(to, 80))
						if err == nil && seen != want {
							err = fmt.Errorf("saw %s, want %s", seen, want)
						}
						if err != nil {
							return fmt.Errorf("from %s to %s: %w", from, to, err)
						}
						return nil
					})
				}
				expectSeen(t, m.ns, a.ips[f], me.InternalIPs[f])
				expectSeen(t, m.ns, d.ips[f], me.InternalIPs[f])
				expectSeen(t, m.ns, outside[f], me.InternalIPs[f])
			}
		})
	}
}

// enforce has the machine's kernel hold what policies of the store say of its leases.
func (m *machine) enforce(store *model.Store, ingress bool) {
	m.t.Helper()
	conn, err := nft.NewKernel(m.ns.FD())
	if err != nil {
		m.t.Fatal(err)
	}
	w, err := store.Watch(networkpolicy.PlannerKinds)
	if err != nil {
		m.t.Fatal(err)
	}
	defer w.Close()
	planner := networkpolicy.NewPlanner(networkpolicy.NodeInputs{Node: m.name, Pods: holders(m.net.leases.List()),
		Ingress: ingress})
	snap, changes, _ := w.Poll()
	entries := map[networkpolicy.Key]networkpolicy.Entry{}
	for _, k := range planner.Keys(snap, changes) {
		if e, ok, _ := planner.Plan(snap, k); ok {
			entries[k] = e
		}
	}
	if err := policynft.New(conn, conntrack.NewTracker(m.ns.FD())).Sync(m.t.Context(), entries); err != nil {
		m.t.Fatal(err)
	}
}

// The proxy of a node reaches isolated pods of its own and of another node when a policy
// allows its labels, and else does not; other nodes and pods do not pass for it.
func TestPoliciesKnowTheProxyByItsLabels(t *testing.T) {
	t.Parallel()
	c := newClusterWith(t, routes.Direct)
	m := c.nodes[0]
	m.stop()
	m.ingress = true
	m.start(c.store)
	m.hasProxy("10.244.1.254", "fd00:244:0:1::ffff")
	a, d := m.mustAdd("a"), c.nodes[1].mustAdd("d")
	tell(a.ns)
	tell(d.ns)
	me, _ := c.store.Snapshot().Node(m.name)
	labels := func(l map[string]string) model.Selector {
		var s model.Selector
		for k, v := range l {
			s.Requirements = append(s.Requirements, model.Requirement{Key: k, Operator: model.In, Values: []string{v}})
		}
		return s
	}
	for _, tc := range []struct {
		labels           map[string]string
		ingress, allowed bool
	}{
		{networkpolicy.ProxyLabels(), true, true},
		{map[string]string{"app": "other"}, true, false},
		{networkpolicy.ProxyLabels(), false, false},
	} {
		ns := labels(map[string]string{"kubernetes.io/metadata.name": "kube-system"})
		err := c.store.Write(func(w *model.Writer) {
			w.PutNamespace(&model.Namespace{Name: "kube-system",
				Labels: map[string]string{"kubernetes.io/metadata.name": "kube-system"}})
			for i, p := range []*pod{a, d} {
				w.PutPod(&model.Pod{Name: model.Name{Namespace: "default", Name: p.id},
					Node: c.nodes[i].name, IPs: p.ips})
			}
			w.PutNetworkPolicy(&model.NetworkPolicy{Name: model.Name{Namespace: "default", Name: "ingress"},
				IsolatesIngress: true,
				Ingress: []model.PolicyRule{{AnyPort: true,
					Peers: []model.PolicyPeer{{Namespaces: &ns, Pods: labels(tc.labels)}}}}})
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range c.nodes {
			n.enforce(c.store, tc.ingress)
		}
		for f, from := range me.ProxyAddrs() {
			for _, to := range []netip.Addr{a.ips[f], d.ips[f]} {
				want := tc.allowed || to == a.ips[f] && !tc.ingress // with ingress off it is the node's own address
				seen, err := whoFrom(m.ns, from, netip.AddrPortFrom(to, 80))
				if (err == nil && seen == from) != want {
					t.Errorf("%v with ingress %v: from %s to %s: saw %s, %v; want it to pass: %v", tc.labels,
						tc.ingress, from, to, seen, err, want)
				}
			}
			if seen, err := who(m.ns, netip.AddrPortFrom(d.ips[f], 80)); err == nil {
				t.Errorf("the node without the address reached a pod of another node, as %s", seen)
			}
			if seen, err := who(a.ns, netip.AddrPortFrom(d.ips[f], 80)); err == nil {
				t.Errorf("a pod reached it as %s", seen)
			}
			expectSeen(t, m.ns, a.ips[f], me.InternalIPs[f])
		}
	}
}

// A pod that has the address from before the reservation keeps it, and the proxy waits. What
// somebody takes away is back. Without ingress, and after uninstall, nothing is left.
func TestTheProxysAddressWaitsForItsPod(t *testing.T) {
	t.Parallel()
	c := newClusterWith(t, routes.Direct)
	m := c.nodes[0]
	m.stop()
	leases := ipam.Open(m.path("state"), time.Minute, nil, nil)
	if err := leases.Adopt("wy0123456789", []netip.Addr{netip.MustParseAddr("10.244.1.254")}); err != nil {
		t.Fatal(err)
	}
	old := leases.List()[0]
	if err := leases.Close(); err != nil {
		t.Fatal(err)
	}
	// or the lease is taken for stale
	m.ns.Run("ip", "link", "add", "wy0123456789", "type", "veth", "peer", "name", "nobody")
	m.ns.Run("ip", "link", "set", "wy0123456789", "up")
	m.ns.Run("ip", "route", "add", "10.244.1.254", "dev", "wy0123456789")
	m.ingress = true
	m.start(c.store)
	m.hasProxy("fd00:244:0:1::ffff")
	m.ns.Run("ip", "link", "del", "wy0123456789")
	if _, ok, err := m.net.leases.Release(old.Key); !ok || err != nil {
		t.Fatal(ok, err)
	}
	m.hasProxy("10.244.1.254", "fd00:244:0:1::ffff")
	m.ns.Run("ip", "addr", "del", "10.244.1.254/32", "dev", "lo")
	m.hasProxy("10.244.1.254", "fd00:244:0:1::ffff")
	m.stop()
	m.ingress = false
	m.start(c.store)
	m.hasProxy()
	m.stop()
	m.ingress = true
	m.start(c.store)
	m.hasProxy("10.244.1.254", "fd00:244:0:1::ffff")
	m.stop()
	remains := func() string {
		out, err := Remains(t.Context(), m.config(c.store))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(out, ", ")
	}
	if left := remains(); !strings.Contains(left, "address 10.244.1.254 of the ingress proxy") {
		t.Errorf("what is there: %s", left)
	}
	if err := m.ns.Do(func() error {
		return Uninstall(context.WithoutCancel(t.Context()),
			m.config(c.store))
	}); err != nil {
		t.Fatal(err)
	}
	if left := remains(); left != "" {
		t.Errorf("left: %s", left)
	}
	if out := m.ns.Run("ip", "-o", "addr", "show", "dev", "lo"); strings.Contains(out, "10.244.1.254") ||
		strings.Contains(out, "::ffff") {
		t.Errorf("left: %s", out)
	}
}

// proxyAddresses are what the proxy was last told to send from.
func proxyAddresses(n *Network) []netip.Addr {
	if p := n.proxy.Load(); p != nil {
		return *p
	}
	return nil
}
