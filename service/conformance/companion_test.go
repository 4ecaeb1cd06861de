package conformance

import (
	"net/netip"
	"testing"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/service/nftables"
)

// While a node changes to IPVS, its companion tables and the mode before are both there. The mode before serves until
// it
// leaves: what the companion kept for IPVS it would refuse. IPVS itself is not needed for that.
func TestTheIPVSCompanionLeavesConnectionsToAnotherMode(t *testing.T) {
	t.Parallel()
	testnet.Need(t, "iptables-nft")
	for _, kind := range []string{"nftables", "iptables-nft", "iptables-legacy"} {
		t.Run(kind, func(t *testing.T) {
			w, all := changingWorld(t, kind, drain)
			w.Set(web(), w.Pods[1], w.Pods[2])
			for _, c := range all {
				companion := nftables.NewIPVSCompanion(c.planes.NFT, c.planes.Track, nil)
				companion.SetNodeFacts(localOf(c.node))
				if err := companion.Sync(t.Context(), c.have); err != nil {
					t.Fatal(err)
				}
				// The address is the node's own, as in mode ipvs.
				for _, is6 := range []bool{false, true} {
					a := vip(is6).Addr()
					c.node.NS.Run("ip", "address", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "lo",
						"scope", "host")
				}
			}
			for _, client := range w.Clients()[:4] { // without the one outside, which has no route
				for _, network := range []string{"tcp", "udp"} {
					for _, is6 := range []bool{false, true} {
						if _, _, err := client.Ask(network, vip(is6)); err != nil {
							t.Errorf("%s: %s %s: %v", client.Name, network, vip(is6), err)
						}
					}
				}
			}
		})
	}
}
