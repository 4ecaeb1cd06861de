package conformance

import (
	"context"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	kernel "wayleave.dev/kernel/ipvs"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/service/ipvs"
	"wayleave.dev/service/nftables"
)

// ipvsMode drives the IPVS mode.
type ipvsMode struct{ Driven }

func (m *ipvsMode) Disturb(node *testnet.NS) {
	node.Run("nft", "flush", "ruleset")
	m.Forget()
}

// Linger is how long a client is remembered after its affinity: while the kernel knows a
// connection of it, which it does for the two minutes of TIME_WAIT, and until it looks
// again, a minute later.
func (m *ipvsMode) Linger() time.Duration { return 190 * time.Second }

func needIPVS(t *testing.T) {
	t.Helper()
	if _, err := kernel.NewKernel(testnet.New(t, "probe").FD()); err != nil {
		t.Skipf("this kernel has no ip_vs (make test-vm has): %v", err)
	}
}

// realIPVS starts the IPVS mode on the kernel of a node.
func realIPVS(t *testing.T) func(n *Node) Mode {
	needIPVS(t)
	running := map[string]func(){}
	return func(n *Node) Mode {
		if end := running[n.Name]; end != nil {
			end() // what was killed repairs nothing
		}
		conn, err := kernel.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		tables, err := nft.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		track, err := conntrack.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range ipvs.Sysctls() {
			n.NS.Sysctl("net/"+name, value)
		}
		mode := ipvs.New(conn, nftables.Beside(tables, track, nil), track, ipvs.Options{Scheduler: "rr", Drain: time.Minute})
		m := &ipvsMode{Driven{Mode: mode, Node: n.Name}}
		n.NS.Sysctl("net/ipv4/conf/all/route_localnet", "1")
		mode.SetLocal(localOf(n))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = mode.Run(ctx) }()
		running[n.Name] = func() { cancel(); <-done }
		t.Cleanup(running[n.Name])
		return m
	}
}

func TestIPVS(t *testing.T) {
	start := realIPVS(t)
	t.Parallel()
	Run(t, start)
}
