package loadbalancer

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"wayleave.dev/model"
)

// Reasons of the condition in a Service's status that describes a problem with its address.
const (
	ReasonPoolFull   = "PoolFull"
	ReasonNoPool     = "NoPool"
	ReasonOutside    = "OutsideOfPools"
	ReasonInUse      = "InUse"
	ReasonNotAllowed = "NotAllowed"
	ReasonConflict   = "SharingConflict"
	ReasonOtherPool  = "OtherPool"
)

// Decision is what a Service should have.
type Decision struct {
	Addrs []netip.Addr
	// Condition is "Reason: message" if there is a problem, otherwise empty.
	Condition string
	Problems  []model.Problem
	// Replaced are addresses outside of every pool that Addrs replace.
	Replaced []netip.Addr
	// Lacks says that a family has no address because the pools have none free. Without Problems, the Service can do
	// without it (PreferDualStack).
	Lacks bool
}

func itoa(port uint16) string { return strconv.Itoa(int(port)) }

// decision is a decision in progress.
type decision struct {
	a *Allocator
	e *allocation
	// has is indexed by family; the zero Addr means none.
	has [2]netip.Addr
	out Decision
}

// Decide returns what a recorded Service should have. It changes nothing; see Reserve. A Service of another class
// keeps what it has.
func (a *Allocator) Decide(n model.Name) Decision {
	e := a.services[n]
	switch {
	case e == nil:
		return Decision{}
	case !a.Ours(e.Service):
		return Decision{Addrs: e.has, Condition: e.LoadBalancer.Condition}
	case e.LoadBalancer.Leaving:
		return Decision{Addrs: e.has, Problems: heldBack(e.Service)}
	}
	d := &decision{a: a, e: e}
	if d.strays() {
		return d.out
	}
	d.keep()
	blocked := d.requests()
	d.missing(blocked)
	d.conflicts()
	for _, f := range d.order() {
		if d.has[f].IsValid() {
			d.out.Addrs = append(d.out.Addrs, d.has[f])
		}
	}
	return d.out
}

// wants reports whether the Service has the family.
func (d *decision) wants(f int) bool {
	return f == 0 && d.e.LoadBalancer.IPv4 || f == 1 && d.e.LoadBalancer.IPv6
}

// order returns the Service's order of families: that of its cluster addresses, or IPv4 first.
func (d *decision) order() [2]int {
	if c := d.e.ClusterIPs; len(c) > 0 && c[0].Is6() {
		return [2]int{1, 0}
	}
	return [2]int{0, 1}
}

func (d *decision) problem(reason, field, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if d.out.Condition == "" {
		d.out.Condition = reason + ": " + text
	}
	d.out.Problems = append(d.out.Problems, model.Problem{Kind: "Service", Object: d.e.Name, Field: field,
		Reason: text})
}

const statusField = "status.loadBalancer.ingress"

// heldBack reports a Service that is being deleted and waits for another controller.
func heldBack(s *model.Service) []model.Problem {
	f := s.LoadBalancer.Finalizer
	if f == "" {
		return nil
	}
	return []model.Problem{{Kind: "Service", Object: s.Name, Field: "metadata.finalizers", Reason: f +
		" keeps the Service until the controller that " +
		"set it removes it; Wayleave neither sets nor removes it; if that controller is gone, remove the finalizer " +
		"by kubectl edit"}}
}

// strays handles addresses outside of every pool: the pool was deleted or reduced, or another load balancer allocated
// them. An address requested by name replaces those of its family. If none is available, the Service keeps what it
// has, and done is true.
func (d *decision) strays() (done bool) {
	isStray := func(a netip.Addr) bool { return d.a.layout.of(a) == nil }
	if !slices.ContainsFunc(d.e.has, isStray) {
		return false
	}
	d.requests()
	var left []netip.Addr
	var out []string
	for _, a := range d.e.has {
		named := d.has[family(a)].IsValid()
		switch {
		case named && isStray(a):
			d.out.Replaced = append(d.out.Replaced, a)
		case !named && isStray(a):
			left, out = append(left, a), append(out, a.String())
		case !named:
			left = append(left, a)
		}
	}
	if len(out) == 0 {
		d.out = Decision{Replaced: d.out.Replaced} // requests are evaluated again, beside what stays
		return false
	}
	d.problem(ReasonOutside, statusField,
		"%s is in no AddressPool: the Service keeps it, but it is not announced; "+
			"add it to a pool, or ask for another address by name", strings.Join(out, " and "))
	for _, f := range d.order() {
		if d.has[f].IsValid() {
			d.out.Addrs = append(d.out.Addrs, d.has[f])
		}
	}
	d.out.Addrs = append(d.out.Addrs, left...)
	return true
}

// keep keeps what the Service has of its families, one address of each.
func (d *decision) keep() {
	for _, addr := range d.e.has {
		if f := family(addr); d.wants(f) && !d.has[f].IsValid() {
			d.has[f] = addr
		}
	}
}

// requests allocates the addresses that are requested by name. blocked are the families in which that failed: no
// other address is allocated there.
func (d *decision) requests() (blocked [2]bool) {
	lb := d.e.LoadBalancer
	for _, addr := range lb.Requested {
		f := family(addr)
		if !d.wants(f) || d.has[f] == addr {
			continue
		}
		kept := ""
		if d.has[f].IsValid() {
			kept = "; the Service keeps " + d.has[f].String()
		}
		seg := d.a.layout.of(addr)
		switch {
		case seg == nil:
			d.problem(ReasonOutside, lb.RequestedField, "%s is outside of every AddressPool%s%s", addr,
				d.a.poolList(), kept)
		case lb.Pool != "" && lb.Pool != seg.pool.Name:
			d.problem(ReasonOtherPool, lb.RequestedField, "%s is in AddressPool %s, but %s asks for %s%s", addr,
				seg.pool.Name, lb.PoolField, lb.Pool, kept)
		case d.refused(seg.pool) != "":
			d.problem(ReasonNotAllowed, lb.RequestedField,
				"%s is in AddressPool %s, which is not for this Service: %s%s", addr, seg.pool.Name,
				d.refused(seg.pool), kept)
		case seg.avoids(addr):
			d.problem(ReasonNotAllowed, lb.RequestedField, "%s is excluded by avoidBuggyAddresses of AddressPool %s%s",
				addr, seg.pool.Name, kept)
		default:
			who, why := d.inUse(addr)
			if who == nil {
				d.has[f] = addr
				continue
			}
			d.problem(ReasonInUse, lb.RequestedField, "%s is in use by %s, and cannot be shared with it: %s%s", addr,
				who.Name, why, kept)
		}
		blocked[f] = true
	}
	return blocked
}

// inUse returns another Service that has the address and cannot share it, nil for none.
func (d *decision) inUse(addr netip.Addr) (*allocation, string) {
	for _, o := range d.a.owners[addr] {
		if o == d.e {
			continue
		}
		if why := sharable(d.e, o); why != "" {
			return o, why
		}
	}
	return nil, ""
}

// refused returns why a pool is not for the Service, empty if it is.
func (d *decision) refused(p *pool) string {
	switch {
	case p.Services.Nothing:
		return "its serviceSelector cannot be parsed"
	case p.Namespaces.Nothing:
		return "its namespaceSelector cannot be parsed"
	case !p.Services.Matches(d.e.LoadBalancer.Labels):
		return "its serviceSelector does not match"
	case !p.Namespaces.Matches(d.a.namespaces[d.e.Name.Namespace]):
		return "its namespaceSelector does not match namespace " + d.e.Name.Namespace
	}
	return ""
}

// missing finds addresses for families without one. Both come from one pool if a pool has both.
func (d *decision) missing(blocked [2]bool) {
	lb := d.e.LoadBalancer
	var want []int
	for _, f := range d.order() {
		if d.wants(f) && !d.has[f].IsValid() && !blocked[f] {
			want = append(want, f)
		}
	}
	if lb.Policy == model.RequireDualStack && (blocked[0] || blocked[1]) && d.has == [2]netip.Addr{} {
		return // all or nothing; the problem is reported
	}
	if len(want) == 0 {
		d.otherPool()
		return
	}
	pools, why := d.candidates()
	got := d.fromOne(pools, want)
	for i := 0; i < len(want) && got == nil; i++ {
		if addr, ok := d.fromAny(pools, want[i]); ok {
			d.has[want[i]] = addr
		}
	}
	for _, f := range want {
		if got != nil {
			d.has[f] = got[f]
		}
	}
	d.lacking(want, pools, why)
}

// lacking reports families without an address.
func (d *decision) lacking(want []int, pools []*pool, why []string) {
	lb := d.e.LoadBalancer
	var names []string
	var lacks []int
	for _, f := range want {
		if !d.has[f].IsValid() {
			names, lacks = append(names, familyNames[f]), append(lacks, f)
		}
	}
	d.out.Lacks = slices.ContainsFunc(lacks, func(f int) bool {
		return slices.ContainsFunc(pools, func(p *pool) bool { return p.total[f] > 0 })
	})
	one := d.has[0].IsValid() || d.has[1].IsValid()
	if len(names) == 0 || lb.Policy == model.PreferDualStack && one {
		return
	}
	if lb.Policy == model.RequireDualStack && len(d.e.has) == 0 {
		d.has = [2]netip.Addr{} // all or nothing
	}
	what, field, reason := strings.Join(names, " and no "), lb.PoolField, ReasonPoolFull
	if lb.Pool == "" {
		field = "spec.type"
	}
	for _, p := range pools {
		for _, f := range lacks {
			if p.total[f] == 0 {
				why = append(why, fmt.Sprintf("AddressPool %s has no %s addresses", p.Name, familyNames[f]))
			} else {
				why = append(why, fmt.Sprintf("AddressPool %s is full (%s)", p.Name, familyNames[f]))
			}
		}
	}
	if len(pools) == 0 {
		reason = ReasonNoPool
	}
	if len(why) == 0 {
		why = append(why, "there is no AddressPool")
	}
	const most = 8 // of reported pools
	if len(why) > most {
		why = append(why[:most:most], fmt.Sprintf("and %d more reasons", len(why)-most))
	}
	d.problem(reason, field, "no %s address is free: %s", what, strings.Join(why, "; "))
}

// otherPool reports that the Service requests a pool and has an address of another.
func (d *decision) otherPool() {
	lb := d.e.LoadBalancer
	for _, addr := range d.has {
		if lb.Pool == "" || !addr.IsValid() || slices.Contains(lb.Requested, addr) {
			continue
		}
		if p := d.a.layout.of(addr).pool; p.Name != lb.Pool {
			d.problem(ReasonOtherPool, lb.PoolField, "the Service keeps %s of AddressPool %s; ask for another "+
				"address, or delete and recreate the Service, to move it to %s", addr, p.Name, lb.Pool)
		}
	}
}

// candidates returns the pools for the Service, the best first: the pool of an address that it has, then pools with
// selectors, which are meant for few, then by age. why lists what excludes the other pools.
func (d *decision) candidates() (pools []*pool, why []string) {
	lb := d.e.LoadBalancer
	if lb.Pool != "" {
		p := d.a.layout.byName[lb.Pool]
		switch {
		case p == nil:
			return nil, []string{"there is no AddressPool " + lb.Pool}
		case d.refused(p) != "":
			return nil, []string{"AddressPool " + p.Name + " is not for this Service: " + d.refused(p)}
		}
		return []*pool{p}, nil
	}
	for _, p := range d.a.layout.pools {
		switch no := d.refused(p); {
		case no != "":
			why = append(why, "AddressPool "+p.Name+" is not for this Service: "+no)
		case !p.AutoAssign:
			why = append(why, "AddressPool "+p.Name+" allocates only on request (autoAssign is false)")
		default:
			pools = append(pools, p)
		}
	}
	slices.SortStableFunc(pools, func(p, q *pool) int { return d.rank(p) - d.rank(q) })
	return pools, why
}

func (d *decision) rank(p *pool) int {
	for _, addr := range d.has {
		if addr.IsValid() && d.a.layout.of(addr).pool == p {
			return 0
		}
	}
	if len(p.Services.Requirements)+len(p.Namespaces.Requirements) > 0 {
		return 1
	}
	return 2
}

// fromOne allocates all families from the first pool that has them all, nil if none has.
func (d *decision) fromOne(pools []*pool, want []int) *[2]netip.Addr {
	for _, p := range pools {
		var got [2]netip.Addr
		all := true
		for _, f := range want {
			var ok bool
			got[f], ok = d.pick(p, f)
			all = all && ok
		}
		if all {
			return &got
		}
	}
	return nil
}

func (d *decision) fromAny(pools []*pool, f int) (netip.Addr, bool) {
	for _, p := range pools {
		if addr, ok := d.pick(p, f); ok {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// pick returns an address of the pool for the Service: one that it can share, otherwise a free one.
func (d *decision) pick(p *pool, f int) (best netip.Addr, ok bool) {
	for addr := range d.a.shared[d.e.LoadBalancer.SharingKey] {
		if seg := d.a.layout.of(addr); family(addr) != f || seg == nil || seg.pool != p || ok && best.Less(addr) {
			continue
		}
		if who, _ := d.inUse(addr); who == nil {
			best, ok = addr, true
		}
	}
	if ok {
		return best, true
	}
	return p.first(f, d.a.used)
}

// conflicts reports addresses that another Service also has and that the two can no longer share, because one of them
// changed. Both keep them, and the younger one gets the problem.
func (d *decision) conflicts() {
	for _, addr := range d.has {
		if !addr.IsValid() {
			continue
		}
		for _, o := range d.a.owners[addr] {
			if o == d.e || d.e.before(o) {
				continue
			}
			if why := sharable(d.e, o); why != "" {
				d.problem(ReasonConflict, statusField,
					"%s is also the address of %s, and they can no longer share it: %s", addr, o.Name, why)
			}
		}
	}
}

// poolList returns " (lan: 192.0.2.1-192.0.2.9)", for messages.
func (a *Allocator) poolList() string {
	var names []string
	for _, p := range a.layout.pools {
		if len(names) == 8 {
			names = append(names, "…")
			break
		}
		names = append(names, p.Name)
	}
	if len(names) == 0 {
		return ", there is none"
	}
	return " (" + strings.Join(names, ", ") + ")"
}
