package loadbalancer

import "wayleave.dev/model"

// Tally counts Services of type LoadBalancer that are ours, and the addresses that they
// have of each pool.
type Tally struct {
	// Served have an address, Waiting have none.
	Served, Waiting int
	// Used has every pool, also those of which nothing is used.
	Used map[string]int
}

// Count makes the tally of a snapshot. byDefault is the setting loadbalancer.default.
func Count(snap model.Snapshot, byDefault bool) Tally {
	owner := Allocator{Default: byDefault}
	t := Tally{Used: map[string]int{}}
	for p := range snap.AddressPools() {
		t.Used[p.Name] = 0
	}
	for s := range snap.Services() {
		switch {
		case !owner.Ours(s):
			continue
		case len(s.LoadBalancer.Given) == 0:
			t.Waiting++
			continue
		}
		t.Served++
		for _, a := range s.LoadBalancer.Given {
			if p := poolOf(snap, a); p != nil {
				t.Used[p.Name]++
			}
		}
	}
	return t
}
