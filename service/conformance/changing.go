package conformance

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	kerneliptables "wayleave.dev/kernel/iptables"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/service"
	"wayleave.dev/service/dataplane"
	"wayleave.dev/service/ipvs"
)

// Changing is a mode that may be replaced by another on a live node, as an agent with
// other settings does after a restart.
type Changing struct {
	t      *testing.T
	node   *Node
	planes dataplane.Planes
	Driven
	end func() // of the mode's Run
}

// modeOf makes a mode by its name, not yet in the kernel.
func modeOf(p dataplane.Planes, kind string) (service.Mode, error) {
	switch kind {
	case "iptables-nft":
		return p.Iptables(kerneliptables.NFT)
	case "iptables-legacy":
		return p.Iptables(kerneliptables.Legacy)
	case "ipvs":
		return p.IPVS()
	}
	return p.Nftables(), nil
}

// NewChanging is a node without a mode; drain is ipvs.drain.
func NewChanging(t *testing.T, n *Node, drain time.Duration) *Changing {
	t.Helper()
	tables, err := nft.NewKernel(n.NS.FD())
	if err != nil {
		t.Fatal(err)
	}
	track, err := conntrack.NewKernel(n.NS.FD())
	if err != nil {
		t.Fatal(err)
	}
	n.NS.Sysctl("net/ipv4/conf/all/route_localnet", "1")
	c := &Changing{t: t, node: n, end: func() {}, planes: dataplane.Planes{NSFD: n.NS.FD(), NFT: tables, Track: track,
		Scheduler: "rr", Drain: drain,
		// The lock file is the test's own: tests beside it are in other namespaces.
		Memory: t.TempDir() + "/iptables", LockFile: t.TempDir() + "/xtables.lock"}}
	t.Cleanup(func() { c.end() })
	return c
}

// Become has another mode, "nftables", "iptables-nft", "iptables-legacy" or "ipvs", of
// which nothing is in the kernel yet. What there was is as after a kill.
func (c *Changing) Become(kind string) {
	c.t.Helper()
	c.end()
	if kind == "ipvs" {
		for name, value := range ipvs.Sysctls() {
			c.node.NS.Sysctl("net/"+name, value)
		}
	}
	mode, err := modeOf(c.planes, kind)
	if err != nil {
		c.t.Fatal(err)
	}
	mode.SetNodeFacts(localOf(c.node))
	c.Driven = Driven{Mode: mode, Node: c.node.Name}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if r, ok := mode.(interface{ Run(context.Context) error }); ok {
			_ = r.Run(ctx)
		}
	}()
	c.end = func() { cancel(); <-done }
}

// Disturb implements Mode; nothing here does.
func (c *Changing) Disturb(*testnet.NS) { c.t.Error("not disturbed here") }

// Leave takes the others out.
func (c *Changing) Leave() error {
	return c.planes.Leave(c.t.Context(), c.Mode, func(what string) { c.t.Logf("%s: %s", c.node.Name, what) })
}

// Remains names what is left of the modes that do not run.
func (c *Changing) Remains() (out []string) {
	c.t.Helper()
	others, err := c.planes.Others(c.Mode)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, m := range others {
		left, err := m.Remains(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		out = append(out, left...)
	}
	return out
}

// localOf is what a mode must know of a node of the world.
func localOf(n *Node) service.NodeFacts {
	return service.NodeFacts{NodeIPs: n.Addrs, PodCIDRs: n.PodCIDRs, OwnPodCIDRs: n.OwnCIDRs,
		NodePortCIDRs: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/24"), netip.MustParsePrefix("fd00:30::/64"),
			netip.MustParsePrefix("127.0.0.0/8")}}
}
