package writeback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"wayleave.dev/loadbalancer"
	"wayleave.dev/model"
	"wayleave.dev/source"
)

// Balancer assigns addresses to Services of type LoadBalancer while this replica is elected. Set the fields, then call
// Run with a context that ends with the leadership.
//
// How duplicate assignment is prevented: the allocator starts from a live list of all Services. The watch may be older
// than what was read or written live, so if they differ, the Service is read live again. An address is reserved before
// it is written, and free again only once the API confirms it. A write names the version that it is based on.
type Balancer struct {
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	Store   *model.Store
	// Default handles Services without a class (the setting loadbalancer.default).
	Default bool
	// Report gets the problems of a key each time it is processed; none means that there are none.
	Report func(key string, problems []model.Problem)
	// SetCondition gets the error of a failed write, and nil once writes succeed again.
	SetCondition func(error)
	Log          *slog.Logger

	allocator *loadbalancer.Allocator
	// unseen are Services whose allocation is newer than what the watch has shown.
	unseen map[model.Name]bool
	// waiting are Services without an address, or without one of their families: they get released addresses.
	waiting map[model.Name]bool
	// todo are Services to process, live those to read live before that.
	todo, live map[model.Name]bool
	// known is the last written status of a pool.
	known map[string]loadbalancer.PoolStatus
	// evicted are the addresses of other load balancers that were replaced, by Service.
	evicted map[model.Name]*eviction
	// poolsAt is when statuses of pools were last written; at most once per poolsEvery.
	poolsAt    time.Time
	poolsEvery time.Duration
	reported   map[string]bool
	freed      bool
}

// writeTimeout bounds a request. It is shorter than the time between the loss of the leadership and the next leader, so
// that the old leader writes nothing once the next one writes.
const writeTimeout = 4 * time.Second

// Kinds are the kinds that allocation reads.
const balancerKinds = model.ServiceKind | model.NamespaceKind | model.AddressPoolKind

// Run works until ctx ends, and returns its error. It first creates the kind AddressPool, so that the watch of pools
// can sync.
func (b *Balancer) Run(ctx context.Context) error {
	defer b.forget()
	if err := b.retry(ctx, func() error { return EnsureAddressPoolCRD(ctx, b.Dynamic) }); err != nil {
		return err
	}
	if err := b.Store.WaitSynced(ctx, balancerKinds); err != nil {
		return err
	}
	if err := b.retry(ctx, func() error { return b.start(ctx) }); err != nil {
		return err
	}
	w, err := b.Store.Watch(balancerKinds)
	if err != nil {
		return err
	}
	defer w.Close()
	b.poolsEvery = time.Second // a burst of Services causes one write of a pool's status
	wait := time.Duration(0)
	for {
		snap, changes, ready := w.Poll()
		err := b.step(ctx, snap, changes)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.SetCondition(err)
		if err == nil {
			wait = 0
		} else {
			wait = min(max(2*wait, 100*time.Millisecond), 30*time.Second)
		}
		pause := wait
		if rest := b.poolsEvery - time.Since(b.poolsAt); pause == 0 && rest > 0 {
			pause = rest
		}
		b.idle(ctx, ready, pause)
	}
}

// retry repeats fn with growing pauses until it succeeds or ctx ends.
func (b *Balancer) retry(ctx context.Context, fn func() error) error {
	return retry(ctx, fn, b.SetCondition)
}

// retry repeats fn with growing pauses until it succeeds or ctx ends. report gets each result.
func retry(ctx context.Context, fn func() error, report func(error)) error {
	for wait := 500 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		err := fn()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		report(err)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// idle waits for a change, or for the given time after a failure.
func (b *Balancer) idle(ctx context.Context, ready model.Ready, wait time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var again <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		again = t.C
	}
	select {
	case <-ctx.Done():
	case <-ready.C(ctx):
	case <-again:
	}
}

// forget removes all reported problems: the next leader reports them.
func (b *Balancer) forget() {
	for key := range b.reported {
		b.Report(key, nil)
	}
	b.SetCondition(nil)
}

// start fills the allocator from a live list. Nothing has been written before.
func (b *Balancer) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	b.allocator = loadbalancer.New(b.Default)
	b.unseen, b.waiting, b.todo, b.live = map[model.Name]bool{}, map[model.Name]bool{}, map[model.Name]bool{},
		map[model.Name]bool{}
	b.known, b.evicted = map[string]loadbalancer.PoolStatus{}, map[model.Name]*eviction{}
	if b.reported == nil {
		b.reported = map[string]bool{}
	}
	// Without a resource version the list is by quorum: it includes the last write.
	list, err := b.Client.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("load balancer: list services: %w", err)
	}
	for i := range list.Items {
		if s, _ := source.Service(&list.Items[i]); s != nil && s.LoadBalancer != nil {
			b.allocator.Set(s)
			b.unseen[s.Name] = true
			b.todo[s.Name] = true
		}
	}
	return nil
}

// step processes the changes. Its error names what will be retried.
func (b *Balancer) step(ctx context.Context, snap model.Snapshot, changes model.Changes) error {
	all := false
	for n := range changes.Of(model.NamespaceKind) {
		var labels map[string]string
		if ns, ok := snap.Namespace(n.Name); ok {
			labels = ns.Labels
		}
		all = b.allocator.SetNamespace(n.Name, labels) || all
	}
	if changes.Any(model.AddressPoolKind) {
		all = b.allocator.SetPools(slices.Collect(snap.AddressPools())) || all
		for n := range changes.Of(model.AddressPoolKind) {
			if _, ok := snap.AddressPool(n.Name); !ok {
				b.report("AddressPool "+n.Name, nil)
				delete(b.known, n.Name)
			}
		}
	}
	if all {
		for _, n := range b.allocator.Services() {
			b.todo[n] = true
		}
	}
	for n := range changes.Of(model.ServiceKind) {
		b.see(snap, n)
	}
	return errors.Join(b.serve(ctx), b.pools(ctx))
}

// see records a Service as the watch shows it.
func (b *Balancer) see(snap model.Snapshot, n model.Name) {
	if b.live[n] {
		// A write failed, and may have been applied all the same: the watch may show an earlier state, even with the
		// version that the allocator has.
		return
	}
	s, ok := snap.Service(n)
	have := b.allocator.Service(n)
	if b.unseen[n] {
		if !ok || s.LoadBalancer == nil || have == nil || s.LoadBalancer.UID != have.LoadBalancer.UID ||
			s.LoadBalancer.Version != have.LoadBalancer.Version {
			b.live[n] = true // older or newer than the allocator: read it from the API
			return
		}
		delete(b.unseen, n)
	}
	switch {
	case ok && s.LoadBalancer != nil:
		b.record(s)
	case have != nil:
		b.remove(n)
	}
}

// record sets a Service and notes whether addresses became free.
func (b *Balancer) record(s *model.Service) {
	had := slices.Clone(b.allocator.Has(s.Name))
	b.allocator.Set(s)
	b.todo[s.Name] = true
	b.noteFreed(had, s.LoadBalancer.Given)
}

func (b *Balancer) remove(n model.Name) {
	b.freed = b.freed || len(b.allocator.Has(n)) > 0
	b.allocator.Remove(n)
	b.report("Service "+n.String(), nil)
	delete(b.waiting, n)
	delete(b.todo, n)
	delete(b.unseen, n)
	delete(b.evicted, n)
}

func (b *Balancer) noteFreed(had, has []netip.Addr) {
	b.freed = b.freed || slices.ContainsFunc(had, func(a netip.Addr) bool { return !slices.Contains(has, a) })
}

// serve processes the queue, the oldest Service first.
func (b *Balancer) serve(ctx context.Context) error {
	var failed []error
	again := map[model.Name]bool{}
	for n := range b.live {
		if err := b.read(ctx, n); err != nil {
			failed = append(failed, err)
			continue
		}
		delete(b.live, n)
	}
	for {
		if b.freed {
			b.freed = false
			for n := range b.waiting {
				b.todo[n] = b.todo[n] || !again[n]
			}
		}
		names := make([]model.Name, 0, len(b.todo))
		for n, yes := range b.todo {
			if yes && !b.live[n] && !again[n] {
				names = append(names, n)
			}
		}
		if len(names) == 0 {
			break
		}
		b.allocator.Sort(names)
		for _, n := range names {
			delete(b.todo, n)
			if err := b.one(ctx, n); err != nil {
				failed = append(failed, err)
				again[n] = true
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	for n := range again {
		b.todo[n] = true
	}
	const most = 3
	if len(failed) > most {
		failed = append(failed[:most], fmt.Errorf("and %d more", len(failed)-most))
	}
	return errors.Join(failed...)
}

// read records a Service as the API has it now.
func (b *Balancer) read(ctx context.Context, n model.Name) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	svc, err := b.Client.CoreV1().Services(n.Namespace).Get(ctx, n.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		b.remove(n)
		return nil
	}
	if err != nil {
		return fmt.Errorf("load balancer: read service %s: %w", n, err)
	}
	b.recordLive(svc, n)
	return nil
}

// recordLive records a Service that was read or written live.
func (b *Balancer) recordLive(svc *corev1.Service, n model.Name) *model.Service {
	s, _ := source.Service(svc)
	if s == nil || s.LoadBalancer == nil {
		b.remove(n)
		return nil
	}
	b.unseen[n] = true
	b.record(s)
	return s
}

// one writes the addresses that a Service should have.
func (b *Balancer) one(ctx context.Context, n model.Name) error {
	s := b.allocator.Service(n)
	if s == nil {
		return nil
	}
	d := b.allocator.Decide(n)
	if b.evicted[n].isContested(d.Replaced) {
		d = contested(s, d)
	}
	if !b.right(s, d) {
		return b.write(ctx, s, d)
	}
	b.settled(n, d)
	return nil
}

// right reports whether the status of a Service matches the decision.
func (b *Balancer) right(s *model.Service, d loadbalancer.Decision) bool {
	return slices.Equal(s.LoadBalancer.Given, d.Addrs) && s.LoadBalancer.Condition == d.Condition
}

// settled records the problems of a Service.
func (b *Balancer) settled(n model.Name, d loadbalancer.Decision) {
	b.report("Service "+n.String(), d.Problems)
	if len(d.Problems) > 0 || d.Lacks {
		b.waiting[n] = true
	} else {
		delete(b.waiting, n)
	}
}

// write reserves the addresses, and writes them for the version of the Service that the allocator has. If the write
// fails, and may have been applied, they stay reserved until the Service has been read live.
func (b *Balancer) write(ctx context.Context, s *model.Service, d loadbalancer.Decision) error {
	n := s.Name
	patch, err := statusPatch(s.LoadBalancer, d)
	if err != nil {
		return fmt.Errorf("load balancer: service %s: %w", n, err)
	}
	// Both the present and the new addresses are reserved until the API has answered.
	b.allocator.Reserve(n, union(s.LoadBalancer.Given, d.Addrs))
	b.unseen[n], b.live[n] = true, true
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	written, err := b.Client.CoreV1().Services(n.Namespace).Patch(ctx, n.Name, types.StrategicMergePatchType, patch,
		metav1.PatchOptions{FieldManager: "wayleave"}, "status")
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		// The Service changed meanwhile: read it at once.
		if err := b.read(ctx, n); err != nil {
			return err
		}
		delete(b.live, n)
		return nil
	}
	if err != nil {
		return fmt.Errorf("load balancer: write the status of service %s: %w", n, err)
	}
	delete(b.live, n)
	b.recordLive(written, n)
	delete(b.todo, n)
	b.settled(n, d)
	if !slices.Equal(s.LoadBalancer.Given, d.Addrs) {
		b.noteEvicted(n, d)
		b.Log.Info("the addresses of a Service have changed", "service", n.String(), "addresses",
			fmt.Sprint(d.Addrs), "before",
			fmt.Sprint(s.LoadBalancer.Given))
	}
	return nil
}

// statusPatch returns a strategic merge patch of the status: the list of addresses is replaced, and only Wayleave's
// condition changes.
func statusPatch(lb *model.Balancer, d loadbalancer.Decision) ([]byte, error) {
	status := map[string]any{}
	if !slices.Equal(lb.Given, d.Addrs) {
		ingress := []map[string]any{}
		for _, a := range d.Addrs {
			ingress = append(ingress, map[string]any{"ip": a.String(), "ipMode": corev1.LoadBalancerIPModeVIP})
		}
		status["loadBalancer"] = map[string]any{"ingress": ingress}
	}
	if lb.Condition != d.Condition {
		condition := map[string]any{"type": source.AddressCondition, "$patch": "delete"}
		if reason, message, ok := strings.Cut(d.Condition, ": "); ok {
			condition = map[string]any{"type": source.AddressCondition, "status": metav1.ConditionFalse,
				"lastTransitionTime": metav1.Now(), "reason": reason, "message": message}
		}
		status["conditions"] = []any{condition}
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": lb.Version}, "status": status})
}

func union(a, b []netip.Addr) []netip.Addr {
	out := slices.Clone(a)
	for _, x := range b {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

func (b *Balancer) report(key string, problems []model.Problem) {
	if len(problems) == 0 && !b.reported[key] {
		return
	}
	b.Report(key, problems)
	if b.reported[key] = len(problems) > 0; !b.reported[key] {
		delete(b.reported, key)
	}
}
