package dns

import (
	"net/netip"
	"testing"
)

// A name made of an address is one that DNS allows: no label ends with a dash.
func TestAddressLabels(t *testing.T) {
	for a, want := range map[string]string{"10.244.1.5": "10-244-1-5", "fd00:244::2:10": "fd00-244--2-10",
		"fd00:244::": "fd00-244--0"} {
		if got := addressLabel(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: got %s, want %s", a, got, want)
		}
	}
}
