// Package direct routes the pods of other nodes by those nodes' addresses, with no
// encapsulation: all nodes must be on one segment.
package direct

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// Plan is the routes that one node asks for on this one.
type Plan struct{ Routes []link.Route }

// Equal compares two plans.
func Equal(a, b Plan) bool { return slices.Equal(a.Routes, b.Routes) }

// Keys are the nodes that a change touches; when it is this node, all of them.
func Keys(self string) func(model.Snapshot, model.Changes) []string {
	return func(snap model.Snapshot, c model.Changes) []string {
		var keys []string
		if _, ok := c.Nodes[self]; ok {
			for n := range snap.Nodes() {
				keys = append(keys, n.Name)
			}
		}
		for n := range c.Nodes {
			if !slices.Contains(keys, n) {
				keys = append(keys, n)
			}
		}
		return keys
	}
}

// Make plans the routes to one node, as seen from the node named self.
func Make(snap model.Snapshot, name, self string) (Plan, bool, []model.Problem) {
	node, ok := snap.Node(name)
	if !ok {
		return Plan{}, false, nil
	}
	me, ok := snap.Node(self)
	if !ok {
		return Plan{}, false, nil
	}
	bad := func(field, format string, args ...any) model.Problem {
		return model.Problem{Kind: "Node", Object: model.Name{Name: name}, Field: field, Reason: fmt.Sprintf(format, args...)}
	}
	if len(node.PodCIDRs) == 0 {
		return Plan{}, false, []model.Problem{bad("spec.podCIDRs", "is empty: the pods of this node cannot be reached (does the controller manager run with --allocate-node-cidrs?)")}
	}
	var p Plan
	var problems []model.Problem
	for i, cidr := range node.PodCIDRs {
		field := fmt.Sprintf("spec.podCIDRs[%d]", i)
		if other, ok := overlap(snap, node, cidr); ok {
			problems = append(problems, bad(field, "%s overlaps with %s of node %s, which is used", cidr, other.PodCIDRs, other.Name))
			continue
		}
		r := link.Route{Dst: cidr, Src: me.Primary(cidr.Addr().Is6())}
		if name != self {
			if r.Via = node.Primary(cidr.Addr().Is6()); !r.Via.IsValid() {
				problems = append(problems, bad("status.addresses", "has no InternalIP of the family of %s", cidr))
				continue
			}
		} else {
			r.Src = netip.Addr{} // unreachable: what no pod has
		}
		p.Routes = append(p.Routes, r)
	}
	return p, len(p.Routes) > 0, problems
}

// overlap finds a node that has the network already: the first by name keeps it.
func overlap(snap model.Snapshot, node *model.Node, cidr netip.Prefix) (*model.Node, bool) {
	for other := range snap.Nodes() {
		if other.Name >= node.Name {
			return nil, false // nodes come in order of names
		}
		if slices.ContainsFunc(other.PodCIDRs, cidr.Overlaps) {
			return other, true
		}
	}
	return nil, false
}

// Target brings plans into the kernel. It is for one goroutine.
type Target struct {
	Net  link.Net
	have map[string]Plan
}

var _ reconcile.Target[string, Plan] = (*Target)(nil)

// Sync implements reconcile.Target.
func (t *Target) Sync(ctx context.Context, plans map[string]Plan) error {
	have, err := t.Net.Routes(ctx)
	if err != nil {
		return err
	}
	t.have = map[string]Plan{}
	failed := reconcile.KeyErrors[string]{}
	wanted := map[netip.Prefix]bool{}
	for name, p := range plans {
		for _, r := range p.Routes {
			wanted[r.Dst] = true
			if slices.Contains(have, r) {
				continue
			}
			if err := t.Net.SetRoute(ctx, r); err != nil {
				failed[name] = err
			}
		}
		t.have[name] = p
	}
	var errs []error
	for _, r := range have {
		if !wanted[r.Dst] {
			errs = append(errs, t.Net.DelRoute(ctx, r))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// Apply implements reconcile.Target.
func (t *Target) Apply(ctx context.Context, set map[string]Plan, del []string) error {
	failed := reconcile.KeyErrors[string]{}
	for name, p := range set {
		if err := t.apply(ctx, t.have[name], p); err != nil {
			failed[name] = err
			continue
		}
		t.have[name] = p
	}
	for _, name := range del {
		if err := t.apply(ctx, t.have[name], Plan{}); err != nil {
			failed[name] = err
			continue
		}
		delete(t.have, name)
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// apply sets the new routes before it removes those that are no more.
func (t *Target) apply(ctx context.Context, old, p Plan) error {
	var errs []error
	for _, r := range p.Routes {
		if !slices.Contains(old.Routes, r) {
			errs = append(errs, t.Net.SetRoute(ctx, r))
		}
	}
	for _, r := range old.Routes {
		if !slices.ContainsFunc(p.Routes, func(n link.Route) bool { return n.Dst == r.Dst }) {
			errs = append(errs, t.Net.DelRoute(ctx, r))
		}
	}
	return errors.Join(errs...)
}
