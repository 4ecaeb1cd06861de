package service

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// OwnershipTable records the plans of a data plane, and which Service owns each frontend and each VIP. The first
// claimant keeps what it has; of several that claim at once, the first by name gets it. The others wait until it is
// free. It is not safe for concurrent use.
type OwnershipTable struct {
	// Plans are in force: the parts of each desired plan that no other Service owns.
	Plans map[model.Name]Plan
	// Want are the desired plans.
	Want   map[model.Name]Plan
	owner  map[Frontend]model.Name
	vips   map[netip.Addr]model.Name
	losers map[model.Name]struct{} // their plan in force lacks something
}

// NewOwnershipTable returns an empty table.
func NewOwnershipTable() *OwnershipTable {
	t := &OwnershipTable{}
	t.Reset()
	return t
}

// OwnersOf returns the table of all plans, and the errors of those that lack a part which is another Service's.
func OwnersOf(plans map[model.Name]Plan) (*OwnershipTable, map[model.Name]error) {
	t := NewOwnershipTable()
	d := t.Begin()
	all := make(map[model.Name]*Plan, len(plans))
	for k, p := range plans {
		all[k] = &p
	}
	d.Change(all)
	t.Accept(d)
	return t, d.Failed()
}

// Reset makes the table empty.
func (t *OwnershipTable) Reset() {
	*t = OwnershipTable{Plans: map[model.Name]Plan{}, Want: map[model.Name]Plan{}, owner: map[Frontend]model.Name{},
		vips: map[netip.Addr]model.Name{}, losers: map[model.Name]struct{}{}}
}

// Frontend returns the plan in force of a frontend; ok is false if no Service owns it.
func (t *OwnershipTable) Frontend(fe Frontend) (p FrontendPlan, ok bool) {
	return t.Plans[t.owner[fe]].Frontend(fe)
}

// OwnershipChange is a change of an OwnershipTable that has not been accepted.
type OwnershipChange struct {
	base *OwnershipTable
	// Given are the desired plans, and Plans the part that the Service gets; nil for none.
	Given, Plans map[model.Name]*Plan
	// Waited are keys that were not in the request: they get what others release.
	Waited map[model.Name]bool
	// Conflicts name the part of a key's plan that belongs to another Service.
	Conflicts map[model.Name]error
	// owner and vips are the changes; the zero Name means free.
	owner map[Frontend]model.Name
	vips  map[netip.Addr]model.Name
}

// Begin begins a change. The table stays unchanged until Accept.
func (t *OwnershipTable) Begin() *OwnershipChange {
	return &OwnershipChange{base: t, Given: map[model.Name]*Plan{}, Plans: map[model.Name]*Plan{},
		Waited: map[model.Name]bool{}, Conflicts: map[model.Name]error{}, owner: map[Frontend]model.Name{},
		vips: map[netip.Addr]model.Name{}}
}

// Change gives each key of todo another plan, nil for none, and returns all keys that change, in the order in which
// they claim. It adds to todo the keys that wait for what others may release.
func (c *OwnershipChange) Change(todo map[model.Name]*Plan) (keys []model.Name) {
	keys = c.order(todo)
	for _, k := range keys {
		c.release(k)
	}
	for _, k := range keys {
		c.claim(k, todo[k])
	}
	return keys
}

// Part returns the same decisions for some of the keys, none of which is in the table.
func (c *OwnershipChange) Part(keys []model.Name) *OwnershipChange {
	out := c.base.Begin()
	for _, k := range keys {
		out.claim(k, c.Plans[k])
		out.Given[k] = c.Given[k]
		if err, ok := c.Conflicts[k]; ok {
			out.Conflicts[k] = err
		}
	}
	return out
}

// order lists the keys of a change in the order in which they claim, with those that wait.
func (c *OwnershipChange) order(todo map[model.Name]*Plan) []model.Name {
	for k := range c.base.losers {
		if _, ok := todo[k]; !ok {
			p := c.base.Want[k]
			todo[k] = &p
			c.Waited[k] = true
		}
	}
	return slices.SortedFunc(maps.Keys(todo), func(a, b model.Name) int {
		return cmp.Or(cmp.Compare(c.base.rank(a), c.base.rank(b)), a.Compare(b))
	})
}

// rank is 0 for a key that already owns all that it claims: it keeps it.
func (t *OwnershipTable) rank(k model.Name) int {
	_, has := t.Plans[k]
	_, waits := t.losers[k]
	if has && !waits {
		return 0
	}
	return 1
}

// release frees all that the key owns.
func (c *OwnershipChange) release(k model.Name) {
	p := c.base.Plans[k]
	for _, e := range p.Frontends {
		c.owner[e.Frontend] = model.Name{}
	}
	for _, a := range p.VIPs {
		c.vips[a] = model.Name{}
	}
}

// claim gives a key the parts of its plan that no other key owns; a nil plan claims nothing.
func (c *OwnershipChange) claim(k model.Name, want *Plan) {
	c.Given[k], c.Plans[k] = want, want
	if want == nil {
		return
	}
	got := *want
	got.VIPs = c.claimVIPs(k, want.VIPs)
	got.Frontends = c.claimFrontends(k, want.Frontends)
	c.Plans[k] = &got
}

// Failed returns the conflicts of the requested keys.
func (c *OwnershipChange) Failed() map[model.Name]error {
	out := map[model.Name]error{}
	for k, err := range c.Conflicts {
		if !c.Waited[k] {
			out[k] = err
		}
	}
	return out
}

// Accept records a change that was begun on this table.
func (t *OwnershipTable) Accept(c *OwnershipChange) {
	for k, p := range c.Plans {
		delete(t.losers, k)
		if p == nil {
			delete(t.Plans, k)
			delete(t.Want, k)
			continue
		}
		t.Plans[k], t.Want[k] = *p, *c.Given[k]
		if c.Conflicts[k] != nil {
			t.losers[k] = struct{}{}
		}
	}
	for fe, k := range c.owner {
		if t.owner[fe] = k; k == (model.Name{}) {
			delete(t.owner, fe)
		}
	}
	for a, k := range c.vips {
		if t.vips[a] = k; k == (model.Name{}) {
			delete(t.vips, a)
		}
	}
}

func (c *OwnershipChange) claimVIPs(k model.Name, want []netip.Addr) []netip.Addr {
	return keep(want, func(a netip.Addr) bool {
		o, changed := c.vips[a]
		if !changed {
			o = c.base.vips[a]
		}
		if o != (model.Name{}) && o != k {
			c.Conflicts[k] = fmt.Errorf("spec.clusterIPs: %s already belongs to service %s, which keeps it", a, o)
			return false
		}
		c.vips[a] = k
		return true
	})
}

func (c *OwnershipChange) claimFrontends(k model.Name, want []FrontendPlan) []FrontendPlan {
	return keep(want, func(e FrontendPlan) bool {
		o, changed := c.owner[e.Frontend]
		if !changed {
			o = c.base.owner[e.Frontend]
		}
		if o != (model.Name{}) && o != k {
			c.Conflicts[k] = fmt.Errorf("spec.ports: %s already belongs to service %s, which keeps it", e.Frontend, o)
			return false
		}
		c.owner[e.Frontend] = k
		return true
	})
}

// keep returns the list without refused entries, or the list itself if there are none.
func keep[T any](list []T, ok func(T) bool) []T {
	var out []T
	same := true
	for i, x := range list {
		switch good := ok(x); {
		case good && !same:
			out = append(out, x)
		case !good && same:
			out, same = slices.Clone(list[:i]), false
		}
	}
	if same {
		return list
	}
	return out
}
