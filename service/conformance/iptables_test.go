package conformance

import (
	"fmt"
	"testing"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	kernel "wayleave.dev/kernel/iptables"
	"wayleave.dev/service/iptables"
)

// iptablesMode drives the iptables mode.
type iptablesMode struct {
	Driven
	flavour kernel.Flavour
}

func (m *iptablesMode) Disturb(node *testnet.NS) {
	for _, f := range kernel.Families() {
		for _, table := range []string{"nat", "filter"} {
			program := fmt.Sprintf("%s-%s", f, m.flavour)
			node.Run(program, "-t", table, "-F")
			node.Run(program, "-t", table, "-X")
		}
	}
	m.Forget()
}

// realIptables starts the iptables mode on the kernel of a node.
func realIptables(t *testing.T, flavour kernel.Flavour) func(n *Node) Mode {
	testnet.Need(t, "iptables-nft")
	return func(n *Node) Mode {
		conn, err := kernel.NewKernel(n.NS.FD(), flavour)
		if err != nil {
			t.Fatal(err)
		}
		conn.LockFile = t.TempDir() + "/xtables.lock" // tests beside are in namespaces of their own
		track, err := conntrack.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		m := &iptablesMode{Driven{Mode: iptables.New(conn, track), Node: n.Name}, flavour}
		n.NS.Sysctl("net/ipv4/conf/all/route_localnet", "1")
		m.Mode.SetLocal(localOf(n))
		return m
	}
}

func TestIptablesNFT(t *testing.T) {
	t.Parallel()
	Run(t, realIptables(t, kernel.NFT))
}

func TestIptablesLegacy(t *testing.T) {
	t.Parallel()
	Run(t, realIptables(t, kernel.Legacy))
}
