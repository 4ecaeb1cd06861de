package iptables

import (
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/iptables"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// A balancer's health check comes in where the host's own firewall drops everything, and
// nothing else does.
func TestHealthChecksPassTheHostsFirewall(t *testing.T) {
	t.Parallel()
	testnet.Need(t, "iptables-nft", "iptables-legacy")
	for _, flavour := range []iptables.Flavour{iptables.NFT, iptables.Legacy} {
		t.Run(string(flavour), func(t *testing.T) {
			t.Parallel()
			node, outside := testnet.New(t, "node"), testnet.New(t, "outside")
			testnet.Veth(node, "eth0", outside, "eth0")
			node.Addr("eth0", "192.0.2.1/24")
			outside.Addr("eth0", "192.0.2.9/24")
			for _, port := range []string{"32100", "32101"} {
				node.Serve("tcp", "192.0.2.1:"+port, func(net.Conn) {})
			}
			lock := filepath.Join(t.TempDir(), "lock")
			node.Run("env", "XTABLES_LOCKFILE="+lock, "iptables-"+string(flavour), "-P", "INPUT", "DROP")
			k, err := iptables.NewKernel(node.FD(), flavour)
			if err != nil {
				t.Fatal(err)
			}
			k.LockFile = lock
			m := New(k, &conntrack.Fake{})
			program(t, m, map[model.Name]service.Plan{name(1): {VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
				HealthCheck: 32100}})
			// Answers pass as the host's firewall has it: here by what is established.
			node.Run("env", "XTABLES_LOCKFILE="+lock, "iptables-"+string(flavour), "-A", "INPUT", "-m", "conntrack",
				"--ctstate", "ESTABLISHED", "-j", "ACCEPT")
			c, err := outside.Dial("tcp", "192.0.2.1:32100", 5*time.Second)
			if err != nil {
				t.Fatalf("the health check is not let in: %v", err)
			}
			c.Close()
			if c, err := outside.Dial("tcp", "192.0.2.1:32101", 300*time.Millisecond); err == nil {
				c.Close()
				t.Error("another port is let in")
			}
		})
	}
}
