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
	for _, tc := range []struct{ rules, ports int }{{4000, 1}, {maxPortSets, 100}} {
		var list []Block
		for i := range tc.rules { // each with ports of its own: half for all addresses, the others for one each
			r := rangeOf(netip.MustParsePrefix("0.0.0.0/0"))
			if i%2 == 1 {
				a := netip.AddrFrom4([4]byte{10, byte(i >> 9), byte(i >> 1), 1})
				r = model.Range{From: a, To: a}
			}
			var p Ports
			for n := range tc.ports {
				port := uint16(2*(i*tc.ports+n) + 1)
				p.Ranges = append(p.Ranges, PortRange{model.TCP, port, port})
			}
			list = append(list, Block{r, p})
		}
		begin := time.Now()
		out := overlay(list)
		if d := time.Since(begin); d > time.Minute { // cubic work takes longer
			t.Errorf("%d rules took %s", tc.rules, d)
		}
		ranges := 0
		for _, b := range out {
			ranges += len(b.Ports.Ranges)
			for _, r := range b.Ports.Ranges {
				i := int(r.From) / 2 / tc.ports
				if allowed := list[i].Range; !allowed.Contains(b.Range.From) || !allowed.Contains(b.Range.To) {
					t.Fatalf("%v has port %d, which rule %d allows for %v only", b.Range, r.From, i, allowed)
				}
			}
		}
		if ranges > 2*maxOverlaid || len(out) == 0 || len(out[0].Ports.Ranges) > maxPortSets*tc.ports {
			t.Errorf("%d rules: %d ranges of ports in %d blocks, more than the bounds allow", tc.rules, ranges,
				len(out))
		}
	}
}
