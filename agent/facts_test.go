package agent

import (
	"fmt"
	"net/netip"
	"testing"
)

// An address that kubelets give to pods on each node, as a NodeLocal DNSCache has it, is never asked of the API server
// as a ClusterIP.
func TestTheAddressOfANodeLocalDNSCache(t *testing.T) {
	all := []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("10.96.0.10"),
		netip.MustParseAddr("fd00:96::a"), netip.MustParseAddr("fe80::a")}
	service, node := SplitDNS(all)
	if got := fmt.Sprint(service, node); got != "[10.96.0.10 fd00:96::a fe80::a] [169.254.20.10]" {
		t.Errorf("it is split into %s", got)
	}
}
