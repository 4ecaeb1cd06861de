package loadbalancer

import "wayleave.dev/model"

// Tally counts the Services of type LoadBalancer that Wayleave handles, and their addresses by pool.
type Tally struct {
	// Served have an address; Waiting have none.
	Served, Waiting int
	// Used contains every pool, also unused ones.
	Used map[string]int
}

// Count counts a snapshot. byDefault is the setting loadbalancer.default.
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
			if p := PoolOf(snap, a); p != nil {
				t.Used[p.Name]++
			}
		}
	}
	return t
}
