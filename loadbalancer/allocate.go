package loadbalancer

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// Class is the spec.loadBalancerClass of Services that Wayleave always handles.
const Class = "wayleave.dev/l2"

// Allocator records which Service has which address. It is not safe for concurrent use.
//
// The status in the API is the allocation: Set records it. Decide computes what a Service should have, Reserve
// reserves that while it is being written.
type Allocator struct {
	// Default handles Services without a class.
	Default bool

	layout     *layout
	services   map[model.Name]*allocation
	namespaces map[string]map[string]string // labels
	owners     map[netip.Addr][]*allocation
	shared     map[string]map[netip.Addr]int // sharing key → its addresses
	touched    map[string]struct{}           // pools whose status may have changed
}

// allocation is what one Service has.
type allocation struct {
	*model.Service
	has []netip.Addr
	key string // the sharing key under which has is recorded
}

// before orders competing Services: the oldest first.
func (e *allocation) before(o *allocation) bool {
	return cmp.Or(e.LoadBalancer.Created.Compare(o.LoadBalancer.Created), e.Name.Compare(o.Name)) < 0
}

// New returns an allocator without Services.
func New(byDefault bool) *Allocator {
	return &Allocator{Default: byDefault, layout: newLayout(nil), services: map[model.Name]*allocation{},
		namespaces: map[string]map[string]string{},
		owners:     map[netip.Addr][]*allocation{}, shared: map[string]map[netip.Addr]int{},
		touched: map[string]struct{}{}}
}

// Ours reports whether this allocator handles the Service.
func (a *Allocator) Ours(s *model.Service) bool {
	return s.LoadBalancer != nil && (s.LoadBalancer.Class == Class || s.LoadBalancer.Class == "" && a.Default)
}

// SetPools replaces all pools. It reports whether anything changed.
func (a *Allocator) SetPools(pools []*model.AddressPool) bool {
	same := len(pools) == len(a.layout.pools)
	for _, p := range pools {
		old := a.layout.byName[p.Name]
		same = same && old != nil && old.Equal(p)
	}
	if same {
		return false
	}
	a.layout = newLayout(pools)
	for addr := range a.owners {
		a.layout.count(addr, 1)
	}
	for _, p := range pools {
		a.touched[p.Name] = struct{}{}
	}
	return true
}

// SetNamespace sets the labels of a namespace; it reports whether they changed.
func (a *Allocator) SetNamespace(name string, labels map[string]string) bool {
	if maps.Equal(a.namespaces[name], labels) {
		return false
	}
	if len(labels) == 0 {
		delete(a.namespaces, name)
	} else {
		a.namespaces[name] = labels
	}
	return true
}

// Set records a Service with the addresses of its status. Services of other classes are recorded, too: their
// addresses are not free.
func (a *Allocator) Set(s *model.Service) {
	if s.LoadBalancer == nil {
		a.Remove(s.Name)
		return
	}
	a.record(s, s.LoadBalancer.Given)
}

// Reserve reserves addresses for a Service, which replace its previous ones.
func (a *Allocator) Reserve(n model.Name, addrs []netip.Addr) {
	if e := a.services[n]; e != nil {
		a.record(e.Service, addrs)
	}
}

// Service returns a recorded Service, nil for none.
func (a *Allocator) Service(n model.Name) *model.Service {
	if e := a.services[n]; e != nil {
		return e.Service
	}
	return nil
}

// Has returns what is recorded or reserved for a Service.
func (a *Allocator) Has(n model.Name) []netip.Addr {
	if e := a.services[n]; e != nil {
		return e.has
	}
	return nil
}

// Remove releases the addresses of a Service.
func (a *Allocator) Remove(n model.Name) {
	if e := a.services[n]; e != nil {
		a.release(e)
		delete(a.services, n)
	}
}

// Services returns the names of all recorded Services, the oldest first.
func (a *Allocator) Services() []model.Name {
	all := slices.SortedFunc(maps.Values(a.services), func(e, o *allocation) int {
		if e.before(o) {
			return -1
		}
		return 1
	})
	out := make([]model.Name, len(all))
	for i, e := range all {
		out[i] = e.Name
	}
	return out
}

// Sort orders names as they are to be served.
func (a *Allocator) Sort(names []model.Name) {
	slices.SortFunc(names, func(n, o model.Name) int {
		e, f := a.services[n], a.services[o]
		if e == nil || f == nil || n == o {
			return n.Compare(o)
		}
		if e.before(f) {
			return -1
		}
		return 1
	})
}

func (a *Allocator) record(s *model.Service, addrs []netip.Addr) {
	e := a.services[s.Name]
	if e == nil {
		e = &allocation{}
		a.services[s.Name] = e
	}
	key := s.LoadBalancer.SharingKey
	if e.Service != nil && slices.Equal(e.has, addrs) && e.key == key {
		e.Service = s
		return
	}
	if e.Service != nil {
		a.release(e)
	}
	e.Service, e.has, e.key = s, slices.Clone(addrs), key
	for _, addr := range e.has {
		if len(a.owners[addr]) == 0 {
			a.layout.count(addr, 1)
			a.touch(addr)
		}
		a.owners[addr] = append(a.owners[addr], e)
		if key != "" {
			if a.shared[key] == nil {
				a.shared[key] = map[netip.Addr]int{}
			}
			a.shared[key][addr]++
		}
	}
}

func (a *Allocator) release(e *allocation) {
	for _, addr := range e.has {
		left := slices.DeleteFunc(a.owners[addr], func(o *allocation) bool { return o == e })
		if len(left) == 0 {
			delete(a.owners, addr)
			a.layout.count(addr, -1)
			a.touch(addr)
		} else {
			a.owners[addr] = left
		}
		if e.key != "" {
			if a.shared[e.key][addr]--; a.shared[e.key][addr] == 0 {
				delete(a.shared[e.key], addr)
			}
			if len(a.shared[e.key]) == 0 {
				delete(a.shared, e.key)
			}
		}
	}
	e.has = nil
}

func (a *Allocator) touch(addr netip.Addr) {
	if s := a.layout.of(addr); s != nil {
		a.touched[s.pool.Name] = struct{}{}
	}
}

func (a *Allocator) used(addr netip.Addr) bool { return len(a.owners[addr]) > 0 }

// Touched returns the names of pools whose status may have changed since the last call, sorted.
func (a *Allocator) Touched() []string {
	out := slices.Sorted(maps.Keys(a.touched))
	clear(a.touched)
	return out
}

// Touch makes Touched return a pool again: its status could not be written.
func (a *Allocator) Touch(pool string) { a.touched[pool] = struct{}{} }

// Pool returns the status of a pool; ok is false if it does not exist. Problems are for Events.
func (a *Allocator) Pool(name string) (s PoolStatus, ok bool, problems []model.Problem) {
	p := a.layout.byName[name]
	if p == nil {
		return PoolStatus{}, false, nil
	}
	if len(p.overlaps) > 0 {
		problems = append(problems, model.Problem{Kind: "AddressPool", Object: model.Name{Name: name},
			Field: "spec.addresses", Reason: overlapText(p)})
	}
	return p.status(), true, problems
}

// sharable reports whether a Service may share an address with another, and otherwise why not: they need the same
// key, different ports, and with externalTrafficPolicy Local the same pods, because one node answers for both.
func sharable(e, o *allocation) (why string) {
	switch {
	case e.LoadBalancer.SharingKey == "":
		return "it has no sharing key"
	case e.LoadBalancer.SharingKey != o.LoadBalancer.SharingKey:
		return "its sharing key differs"
	case (e.ExternalLocal || o.ExternalLocal) && e.LoadBalancer.Selector != o.LoadBalancer.Selector:
		return "with externalTrafficPolicy Local both must have the same selector"
	}
	for _, p := range e.Ports {
		for _, q := range o.Ports {
			if p.Protocol == q.Protocol && p.Port == q.Port {
				return "both have port " + p.Protocol.String() + " " + itoa(p.Port)
			}
		}
	}
	return ""
}
