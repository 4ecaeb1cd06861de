package routes

import (
	"context"
	"errors"
	"maps"
	"slices"

	"wayleave.dev/kernel/link"
	"wayleave.dev/reconcile"
)

// Target brings plans into the kernel. It is for one goroutine.
type Target struct {
	Net link.Net
	// Loosen is called for the tunnel's device: reverse paths cannot be checked there.
	Loosen func(dev string) error
	// Tunneled is told of each try to make this node's end of VXLAN; may be nil.
	Tunneled func(error)
	// Spoiled has the kernel compute checksums of what goes into the tunnel.
	Spoiled bool
	// want are the plans, routes what the kernel has of them.
	want   map[string]Plan
	routes map[string][]link.Route
}

var _ reconcile.Target[string, Plan] = (*Target)(nil)

// Sync implements reconcile.Target: tunnel and peers first, then routes that use
// them, then what is stale.
func (t *Target) Sync(ctx context.Context, plans map[string]Plan) error {
	t.want, t.routes = maps.Clone(plans), map[string][]link.Route{}
	if err := t.shared(ctx); err != nil {
		return err
	}
	have, err := t.Net.Routes(ctx)
	if err != nil {
		return err
	}
	wanted := t.wanted()
	var errs []error
	for _, r := range have {
		owner, ok := wanted[r.Where()]
		if !ok {
			errs = append(errs, t.Net.DelRoute(ctx, r))
			continue
		}
		t.routes[owner] = append(t.routes[owner], r) // adopted, or replaced by settleOne
	}
	if t.tunnel() == nil {
		errs = append(errs, t.Net.DelTunnel(ctx, Device))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return t.finish(ctx, slices.Collect(maps.Keys(plans)))
}

// finish settles the routes, and forgets peers to whom none of them goes by now.
// Without peers there are no rules: with a single one the kernel looks each packet's
// route up by the slow way, and checks sources in full (bench/cni: 7 % of a request).
func (t *Target) finish(ctx context.Context, keys []string) error {
	settled := t.settle(ctx, keys)
	peers := t.peers()
	if err := t.Net.SetPeers(ctx, Device, peers, true); err != nil {
		return err
	}
	if !t.ruled() {
		if err := t.Net.SetRules(ctx, nil); err != nil {
			return err
		}
	}
	return settled
}

// ruled says whether a route is in the table that the rules are for.
func (t *Target) ruled() bool {
	for _, p := range t.want {
		if p.Peer != nil || slices.ContainsFunc(p.Routes, func(r link.Route) bool { return r.Table == link.Table }) {
			return true
		}
	}
	return false
}

// wanted are the places of all routes, and whose they are.
func (t *Target) wanted() map[link.Where]string {
	out := map[link.Where]string{}
	for name, p := range t.want {
		for _, r := range p.Routes {
			out[r.Where()] = name
		}
	}
	return out
}

func (t *Target) tunnel() *link.Tunnel {
	for _, p := range t.want {
		if p.Tunnel != nil {
			return p.Tunnel
		}
	}
	return nil
}

func (t *Target) peers() (out []link.Peer) {
	for _, p := range t.want {
		if p.Peer != nil {
			out = append(out, *p.Peer)
		}
	}
	return out
}

// shared brings about what all plans have together: the tunnel, its peers, the
// rules.
func (t *Target) shared(ctx context.Context) error {
	var rules []link.Rule
	for _, p := range t.want {
		rules = append(rules, p.Rules...)
	}
	if tunnel := t.tunnel(); tunnel != nil {
		err := t.Net.SetTunnel(ctx, *tunnel)
		if t.Tunneled != nil {
			t.Tunneled(err)
		}
		if err != nil {
			return err
		}
		if err := t.Net.SetChecksumOffload(ctx, tunnel.Name, !t.Spoiled); err != nil {
			return err
		}
		if t.Loosen != nil {
			if err := t.Loosen(tunnel.Name); err != nil {
				return err
			}
		}
	}
	// Who is no peer any more stays one until no route goes there.
	if err := t.Net.SetPeers(ctx, Device, t.peers(), false); err != nil || !t.ruled() {
		return err
	}
	return t.Net.SetRules(ctx, rules)
}

// Apply implements reconcile.Target.
func (t *Target) Apply(ctx context.Context, set map[string]Plan, del []string) error {
	maps.Copy(t.want, set)
	for _, name := range del {
		delete(t.want, name)
	}
	if err := t.shared(ctx); err != nil {
		return err
	}
	return t.finish(ctx, slices.AppendSeq(slices.Clone(del), maps.Keys(set)))
}

// settle sets the routes of these keys that are missing, and removes those that
// are no more.
func (t *Target) settle(ctx context.Context, keys []string) error {
	wanted := t.wanted()
	failed := reconcile.KeyErrors[string]{}
	for _, name := range keys {
		if err := t.settleOne(ctx, name, wanted); err != nil {
			failed[name] = err
		}
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

func (t *Target) settleOne(ctx context.Context, name string, wanted map[link.Where]string) error {
	var errs []error
	var now []link.Route
	for _, r := range t.want[name].Routes {
		if !slices.Contains(t.routes[name], r) {
			if err := t.Net.SetRoute(ctx, r); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		now = append(now, r)
	}
	for _, r := range t.routes[name] {
		if owner, ok := wanted[r.Where()]; ok && !t.leaves(owner, r) {
			continue // set above, or another node's by now
		}
		if err := t.Net.DelRoute(ctx, r); err != nil {
			errs = append(errs, err)
			now = append(now, r)
		}
	}
	t.routes[name] = now
	if len(now) == 0 {
		delete(t.routes, name)
	}
	return errors.Join(errs...)
}

// leaves says whether a route stays in the kernel when the one that is wanted in its place is set: the kernel replaces
// only routes of the same metric.
func (t *Target) leaves(owner string, old link.Route) bool {
	return slices.ContainsFunc(t.want[owner].Routes, func(r link.Route) bool {
		return r.Where() == old.Where() && r.Metric != old.Metric
	})
}
