package networkpolicy

import (
	"net/netip"
	"testing"
	"time"

	"wayleave.dev/model"
)

// The author of a policy chooses blocks whose ports combine to ever more sets: their number is bounded, and what is
// over the bounds allows nothing. A node plans them while its new pods wait.
func TestCombinationsOfBlocksAreBounded(t *testing.T) {
	t.Parallel()
	const rules = 4000
	var list []Block
	for i := range rules { // each with a port of its own: half for all addresses, the others for one each
		r := rangeOf(netip.MustParsePrefix("0.0.0.0/0"))
		if i%2 == 1 {
			a := netip.AddrFrom4([4]byte{10, byte(i >> 9), byte(i >> 1), 1})
			r = model.Range{From: a, To: a}
		}
		list = append(list, Block{r, Ports{Ranges: []PortRange{{model.TCP, uint16(2*i + 1), uint16(2*i + 1)}}}})
	}
	begin := time.Now()
	out := overlay(list)
	if d := time.Since(begin); d > time.Minute { // cubic work takes longer
		t.Errorf("%d rules took %s", rules, d)
	}
	ranges := 0
	for _, b := range out {
		ranges += len(b.Ports.Ranges)
		for _, r := range b.Ports.Ranges {
			i := int(r.From) / 2
			if allowed := list[i]; !allowed.Range.Contains(b.Range.From) || !allowed.Range.Contains(b.Range.To) {
				t.Fatalf("%v has port %d, which rule %d allows for %v only", b.Range, r.From, i, allowed.Range)
			}
		}
	}
	if ranges > maxOverlaid || len(out) == 0 || len(out[0].Ports.Ranges) > maxPortSets {
		t.Errorf("%d ranges of ports in %d blocks, more than the bounds allow", ranges, len(out))
	}
}
