package podnetwork

import (
	"fmt"
	"net/netip"
	"testing"

	"wayleave.dev/podnetwork/ipam"
)

// Addresses are named by their pod, both families, and those of leases without a name are
// nobody's.
func TestHolders(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00::2")
	got := holders([]ipam.Lease{{Pod: "default/web", IPs: []netip.Addr{v4, v6}},
		{IPs: []netip.Addr{netip.MustParseAddr("10.244.1.3")}}})
	if len(got) != 2 || fmt.Sprint(got[v4], got[v6]) != "default/web default/web" {
		t.Errorf("%v", got)
	}
	if got := holders(nil); got == nil {
		t.Error("a node without leases is not known to have none")
	}
}
