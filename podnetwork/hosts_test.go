package podnetwork

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/routes"
)

// A host that switches IPv6 off for new links gets links of pods and a tunnel with IPv6 all the same, as the reference
// plugins make them; what the host says of other links stays.
func TestIPv6OffForNewLinks(t *testing.T) {
	t.Parallel()
	c := newClusterWith(t, routes.VXLAN)
	for _, m := range c.nodes {
		m.stop()
		m.ns.Run("ip", "link", "del", routes.Device)
		m.ns.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
		m.start(c.store)
	}
	pods := make([]*pod, 2)
	for i, m := range c.nodes {
		ns := testnet.New(t, m.name+"-pod")
		for _, link := range []string{"default", "lo"} {
			ns.Sysctl("net/ipv6/conf/"+link+"/disable_ipv6", "1")
		}
		var err error
		if pods[i], err = m.addIn(m.name+"-pod", ns); err != nil {
			t.Fatal(err)
		}
		tell(ns)
	}
	for f := range 2 {
		expectSeen(t, pods[0].ns, pods[1].ips[f], pods[0].ips[f])
		expectSeen(t, pods[1].ns, pods[0].ips[f], pods[1].ips[f])
	}
	pods[0].ns.Run("ping", "-6", "-c1", "-W2", "::1")
	if got := c.nodes[0].ns.Run("cat", "/proc/sys/net/ipv6/conf/default/disable_ipv6"); got != "1\n" {
		t.Errorf("the host's default is %q now", got)
	}
	if _, err := c.nodes[0].plugin(conf, pods[0].env("DEL")...); err != nil {
		t.Error(err)
	}
}

// A link has routes and neighbours of its lease alone: what a cut-short ADD or a wrong lease left there is removed, by
// the start and by each later repair.
func TestALinkHasNoOtherPodsRoute(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	m := c.nodes[0]
	p, other := m.mustAdd("a"), m.mustAdd("b")
	link := call.HostName(p.id, "eth0")
	stale := func() {
		for _, a := range []string{"10.244.1.77/32", "fd00:244:0:1::77/128"} {
			prefix := netip.MustParsePrefix(a)
			m.ns.Run("ip", "route", "replace", a, "dev", link, "proto", "87")
			m.ns.Run("ip", "neigh", "replace", prefix.Addr().String(), "lladdr", "0a:57:0a:f4:01:4d", "dev", link,
				"nud", "permanent")
		}
		m.ns.Run("ip", "route", "replace", "10.99.0.0/24", "dev", link) // somebody's own: not ours
	}
	gone := func() error {
		have, err := m.net.host.Addresses(link)
		if err != nil {
			return err
		}
		slices.SortFunc(have, netip.Addr.Compare)
		if !slices.Equal(have, p.ips) {
			return fmt.Errorf("the link has routes to %v, want %v", have, p.ips)
		}
		if out := m.ns.Run("sh", "-c", "ip neigh show dev "+link+" nud permanent | grep -c 77 || true"); out != "0\n" {
			return fmt.Errorf("%s stale neighbours", out)
		}
		return nil
	}
	m.stop()
	stale()
	m.start(c.store)
	testnet.Eventually(t, 5*time.Second, gone)
	stale()
	m.ns.Run("ip", "route", "del", other.ips[0].String()) // whatever is repaired, all is
	testnet.Eventually(t, 5*time.Second, gone)
	if out := m.ns.Run("ip", "route", "show", "dev", link); !strings.Contains(out, "10.99.0.0/24") {
		t.Errorf("a route that is not ours is gone: %s", out)
	}
	tell(other.ns)
	expectSeen(t, p.ns, other.ips[0], p.ips[0])
}

// A repair that began before a container's interface was deleted and made again does not bring the first one's
// addresses to the second one's link.
func TestRepairBesideCalls(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	m := c.nodes[0]
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				m.net.repair()
			}
		})
	}
	defer wg.Wait()
	defer stop.Store(true)
	ns := testnet.New(t, "again")
	link := call.HostName("again", "eth0")
	for range 40 {
		p, err := m.addIn("again", ns)
		if err != nil {
			t.Fatal(err)
		}
		have, err := m.net.host.Addresses(link)
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(have, netip.Addr.Compare)
		if !slices.Equal(have, p.ips) {
			t.Fatalf("the link of %v has routes to %v", p.ips, have)
		}
		if _, err := m.plugin(conf, p.env("DEL")...); err != nil {
			t.Fatal(err)
		}
	}
}

// A node without spec.podCIDRs is named with the switch that is missing, and its pods wait.
func TestPodCIDRsThatAreMissing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	m := c.nodes[0]
	m.stop()
	c.put(&model.Node{Name: m.name, InternalIPs: []netip.Addr{netip.MustParseAddr("172.30.0.11")}})
	m.startWith(c.store, func() error { return nil })
	testnet.Eventually(t, 5*time.Second, func() error {
		said, _ := m.bad.Load("routes node1")
		list, _ := said.([]model.Problem)
		for _, p := range list {
			if p.Kind == "Node" && p.Object.Name == m.name && p.Field == "spec.podCIDRs" &&
				strings.Contains(p.Reason, "--allocate-node-cidrs") {
				return nil
			}
		}
		return fmt.Errorf("said was %v", said)
	})
	if _, err := m.add("early"); err == nil || !strings.Contains(err.Error(), "spec.podCIDRs is empty") ||
		!strings.Contains(err.Error(), "--allocate-node-cidrs") {
		t.Errorf("ADD says %v", err)
	}
}
