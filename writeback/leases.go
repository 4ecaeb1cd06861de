package writeback

import (
	"context"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// leaseWatch follows Leases of a namespace.
type leaseWatch struct {
	// changed gets a value after each change; several changes may be combined.
	changed chan struct{}
	synced  func() bool
	store   cache.Store
}

// oneLease selects one Lease by its name.
func oneLease(name string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()}
}

// watchLeases follows the Leases that options select, until ctx ends.
func watchLeases(ctx context.Context, client kubernetes.Interface, namespace string,
	options metav1.ListOptions) *leaseWatch {
	w := &leaseWatch{changed: make(chan struct{}, 1)}
	notify := func() {
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
	leases := client.CoordinationV1().Leases(namespace)
	some := func(o metav1.ListOptions) metav1.ListOptions {
		o.FieldSelector, o.LabelSelector = options.FieldSelector, options.LabelSelector
		return o
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return leases.List(ctx, some(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return leases.Watch(ctx, some(o))
		},
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { notify() }, UpdateFunc: func(any, any) { notify() }, DeleteFunc: func(any) { notify() }}
	store, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(lw, client), ObjectType: &coordinationv1.Lease{},
		Handler: handler})
	w.store, w.synced = store, controller.HasSynced
	go controller.RunWithContext(ctx)
	return w
}

// lease returns the Lease of that name as last seen, nil for none.
func (w *leaseWatch) lease(name string) *coordinationv1.Lease {
	for _, l := range w.all() {
		if l.Name == name {
			return l
		}
	}
	return nil
}

// all returns the Leases as last seen; the caller must not change them.
func (w *leaseWatch) all() (out []*coordinationv1.Lease) {
	for _, o := range w.store.List() {
		if l, ok := o.(*coordinationv1.Lease); ok {
			out = append(out, l)
		}
	}
	return out
}

// pause waits for a time, or until one of two channels, which may be nil, has a value. It returns false when ctx has
// ended.
func pause(ctx context.Context, d time.Duration, a, b <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-a:
	case <-b:
	}
	return ctx.Err() == nil
}
