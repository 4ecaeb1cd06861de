package model

import (
	"context"
	"fmt"
	"iter"

	"github.com/cilium/statedb"
)

// Changes names the keys that a change touched, so that work follows what
// changed and not what exists. A slice's change is a change of its service.
type Changes struct {
	Services     map[Name]struct{}
	Pods         map[Name]struct{}
	Nodes        map[string]struct{}
	Namespaces   map[string]struct{}
	AddressPools map[string]struct{}
	Policies     map[Name]struct{}
	Ingresses    map[Name]struct{}
	Classes      map[string]struct{}
	Secrets      map[Name]struct{}
	ServiceCIDRs map[string]struct{}
}

// Empty is true when nothing changed.
func (c Changes) Empty() bool {
	return len(c.Services)+len(c.Pods)+len(c.Nodes)+len(c.Namespaces)+len(c.AddressPools)+len(c.Policies)+
		len(c.Ingresses)+len(c.Classes)+len(c.Secrets)+len(c.ServiceCIDRs) == 0
}

// Watcher tells one reader what changed since it last asked. Changes that pile
// up in between are merged. It must be used by one goroutine only, and closed.
type Watcher struct {
	s          *Store
	services   statedb.ChangeIterator[*Service]
	slices     statedb.ChangeIterator[*EndpointSlice]
	pods       statedb.ChangeIterator[*Pod]
	nodes      statedb.ChangeIterator[*Node]
	namespaces statedb.ChangeIterator[*Namespace]
	pools      statedb.ChangeIterator[*AddressPool]
	policies   statedb.ChangeIterator[*NetworkPolicy]
	ingresses  statedb.ChangeIterator[*Ingress]
	classes    statedb.ChangeIterator[*IngressClass]
	secrets    statedb.ChangeIterator[*Secret]
	cidrs      statedb.ChangeIterator[*ServiceCIDR]
	// lastService remembers a slice's service, as a slice may change its owner.
	lastService map[Name]Name
}

// Watch starts a Watcher of the kinds; its first Next reports all that exists.
func (s *Store) Watch(kinds Kind) (*Watcher, error) {
	w := &Watcher{s: s}
	var err error
	if kinds&(ServiceKind|EndpointSliceKind) != 0 {
		w.lastService = map[Name]Name{}
		if w.services, err = changes(s, s.services); err != nil {
			return nil, err
		}
		if w.slices, err = changes(s, s.slices); err != nil {
			return nil, err
		}
	}
	if kinds&PodKind != 0 {
		if w.pods, err = changes(s, s.pods); err != nil {
			return nil, err
		}
	}
	if kinds&NodeKind != 0 {
		if w.nodes, err = changes(s, s.nodes); err != nil {
			return nil, err
		}
	}
	if kinds&NamespaceKind != 0 {
		if w.namespaces, err = changes(s, s.namespaces); err != nil {
			return nil, err
		}
	}
	if kinds&AddressPoolKind != 0 {
		if w.pools, err = changes(s, s.pools); err != nil {
			return nil, err
		}
	}
	if kinds&NetworkPolicyKind != 0 {
		if w.policies, err = changes(s, s.policies); err != nil {
			return nil, err
		}
	}
	if kinds&ServiceCIDRKind != 0 {
		if w.cidrs, err = changes(s, s.serviceCIDRs); err != nil {
			return nil, err
		}
	}
	if err := w.watchIngress(kinds); err != nil {
		return nil, err
	}
	return w, nil
}

// watchIngress watches what Ingress is made of.
func (w *Watcher) watchIngress(kinds Kind) (err error) {
	if kinds&IngressKind != 0 {
		if w.ingresses, err = changes(w.s, w.s.ingresses); err != nil {
			return err
		}
	}
	if kinds&IngressClassKind != 0 {
		if w.classes, err = changes(w.s, w.s.classes); err != nil {
			return err
		}
	}
	if kinds&SecretKind != 0 {
		if w.secrets, err = changes(w.s, w.s.secrets); err != nil {
			return err
		}
	}
	return nil
}

func changes[O any](s *Store, t statedb.RWTable[O]) (statedb.ChangeIterator[O], error) {
	txn := s.db.WriteTxn(t)
	defer txn.Commit()
	it, err := t.Changes(txn)
	if err != nil {
		return nil, fmt.Errorf("model: watch %s: %w", t.Name(), err)
	}
	return it, nil
}

// Close ends the watch.
func (w *Watcher) Close() {
	closeIf(w.services)
	closeIf(w.slices)
	closeIf(w.pods)
	closeIf(w.nodes)
	closeIf(w.namespaces)
	closeIf(w.pools)
	closeIf(w.policies)
	closeIf(w.ingresses)
	closeIf(w.classes)
	closeIf(w.secrets)
	closeIf(w.cidrs)
}

func closeIf[O any](it statedb.ChangeIterator[O]) {
	if it != nil {
		it.Close()
	}
}

// Next waits until something of the watched kinds has changed, and returns the
// state and the changed keys. It returns ctx's error when that ends first.
func (w *Watcher) Next(ctx context.Context) (Snapshot, Changes, error) {
	for {
		snap, c, ready := w.Poll()
		if !c.Empty() {
			return snap, c, nil
		}
		if err := ready.wait(ctx); err != nil {
			return Snapshot{}, Changes{}, err
		}
	}
}

// Poll is Next without waiting: it returns what has changed so far, maybe
// nothing, and a handle to wait for more with.
func (w *Watcher) Poll() (Snapshot, Changes, Ready) {
	snap := w.s.Snapshot()
	c := Changes{
		Services: map[Name]struct{}{}, Pods: map[Name]struct{}{},
		Nodes: map[string]struct{}{}, Namespaces: map[string]struct{}{}, AddressPools: map[string]struct{}{},
		Policies: map[Name]struct{}{}, Ingresses: map[Name]struct{}{}, Classes: map[string]struct{}{},
		Secrets:      map[Name]struct{}{},
		ServiceCIDRs: map[string]struct{}{},
	}
	set := statedb.NewWatchSet()
	drain(snap, w.services, set, func(s *Service, _ bool) { c.Services[s.Name] = struct{}{} })
	drain(snap, w.slices, set, func(s *EndpointSlice, deleted bool) { w.slice(&c, s, deleted) })
	drain(snap, w.pods, set, func(p *Pod, _ bool) { c.Pods[p.Name] = struct{}{} })
	drain(snap, w.nodes, set, func(n *Node, _ bool) { c.Nodes[n.Name] = struct{}{} })
	drain(snap, w.namespaces, set, func(n *Namespace, _ bool) { c.Namespaces[n.Name] = struct{}{} })
	drain(snap, w.pools, set, func(p *AddressPool, _ bool) { c.AddressPools[p.Name] = struct{}{} })
	drain(snap, w.policies, set, func(p *NetworkPolicy, _ bool) { c.Policies[p.Name] = struct{}{} })
	drain(snap, w.ingresses, set, func(i *Ingress, _ bool) { c.Ingresses[i.Name] = struct{}{} })
	drain(snap, w.classes, set, func(i *IngressClass, _ bool) { c.Classes[i.Name] = struct{}{} })
	drain(snap, w.secrets, set, func(s *Secret, _ bool) { c.Secrets[s.Name] = struct{}{} })
	drain(snap, w.cidrs, set, func(r *ServiceCIDR, _ bool) { c.ServiceCIDRs[r.Name] = struct{}{} })
	return snap, c, Ready{set}
}

func (w *Watcher) slice(c *Changes, s *EndpointSlice, deleted bool) {
	owner := s.ServiceName()
	if last, ok := w.lastService[s.Name]; ok && last != owner {
		c.Services[last] = struct{}{}
	}
	c.Services[owner] = struct{}{}
	if deleted {
		delete(w.lastService, s.Name)
		return
	}
	w.lastService[s.Name] = owner
}

func drain[O any](snap Snapshot, it statedb.ChangeIterator[O], set *statedb.WatchSet, fn func(O, bool)) {
	if it == nil {
		return
	}
	var seq iter.Seq2[statedb.Change[O], statedb.Revision]
	seq, watch := it.Next(snap.txn)
	for ch := range seq {
		fn(ch.Object, ch.Deleted)
	}
	set.Add(watch)
}

// Ready is closed over the tables of a Poll.
type Ready struct{ set *statedb.WatchSet }

// C is closed when something may have changed since the Poll, or ctx ended.
func (r Ready) C(ctx context.Context) <-chan struct{} {
	c := make(chan struct{})
	go func() {
		defer close(c)
		_ = r.wait(ctx) // an ended ctx is the caller's to see
	}()
	return c
}

func (r Ready) wait(ctx context.Context) error {
	_, err := r.set.Wait(ctx, 0)
	return err
}

// MarkSynced says that the source has delivered all that exists of the kinds.
// Nothing may be taken for stale before that.
func (s *Store) MarkSynced(kinds Kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.synced|kinds == s.synced {
		return
	}
	s.synced |= kinds
	close(s.waiter)
	s.waiter = make(chan struct{})
}

// Synced is the set of kinds that were marked so far.
func (s *Store) Synced() Kind {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced
}

// WaitSynced waits until all kinds were marked, or ctx ends.
func (s *Store) WaitSynced(ctx context.Context, kinds Kind) error {
	for {
		s.mu.Lock()
		have, waiter := s.synced, s.waiter
		s.mu.Unlock()
		if have&kinds == kinds {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-waiter:
		}
	}
}
