package conformance

import (
	"context"
	"errors"
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

// Changing is a mode that can be replaced by another one on a live node, like an agent that restarts with other
// settings.
type Changing struct {
	t      *testing.T
	node   *Node
	planes dataplane.Planes
	Driven
	end func() // of the mode's Run
}

// modeOf returns a mode by its name; the kernel is not changed.
func modeOf(p dataplane.Planes, kind string) (service.Mode, error) {
	switch kind {
	case "iptables-nft":
		return p.Iptables(kerneliptables.NFT)
	case "iptables-legacy":
		return p.Iptables(kerneliptables.Legacy)
	case "ipvs":
		return p.IPVS()
	case "ebpf":
		return p.EBPF()
	}
	return p.Nftables(), nil
}

// NewChanging returns a node without a mode; drain is ipvs.drain.
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
	c := &Changing{t: t, node: n, end: func() {}, planes: dataplane.Planes{NSFD: n.NS.FD(), NFT: tables,
		Track: track, Scheduler: "rr", Drain: drain, Cgroup: n.Cgroup(), BPF: testnet.BPFFS(t),
		// The test has its own lock file: tests that run at the same time are in other namespaces.
		Memory: t.TempDir() + "/iptables", LockFile: t.TempDir() + "/xtables.lock"}}
	t.Cleanup(func() {
		c.end()
		own, err := c.planes.Sockets()
		for _, m := range own {
			err = errors.Join(err, m.Remove(context.Background()))
		}
		if err != nil {
			t.Error(err)
		}
	})
	return c
}

// Become switches to a new instance of the mode "nftables", "iptables-nft", "iptables-legacy", "ipvs" or "ebpf", which
// has no state in the kernel yet. The former mode's state stays as after SIGKILL.
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

// Disturb implements Mode; these tests do not use it.
func (c *Changing) Disturb(*testnet.NS) { c.t.Error("Disturb is not supported") }

// Leave removes the other modes.
func (c *Changing) Leave() error {
	return c.planes.Leave(c.t.Context(), c.Mode, func(what string) { c.t.Logf("%s: %s", c.node.Name, what) })
}

// Remains lists what is left of the modes that do not run.
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

// localOf returns the facts that a mode needs about a node of the world.
func localOf(n *Node) service.NodeFacts {
	return service.NodeFacts{NodeIPs: n.Addrs, PodCIDRs: n.PodCIDRs, OwnPodCIDRs: n.OwnCIDRs,
		NodePortCIDRs: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/24"), netip.MustParsePrefix("fd00:30::/64"),
			netip.MustParsePrefix("127.0.0.0/8")}}
}
