package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"wayleave.dev/model"
	"wayleave.dev/source"
)

// namedWithin is how long a named object may take to be read. After that the model contains it with the error, and
// nothing waits for it any longer.
const namedWithin = 10 * time.Second

// Named watches single objects of one kind by name, as long as a key names them. No other object is ever requested. It
// is a reconcile.Target: keys are the objects that name others, plans are the names. Run must be running; the other
// methods are safe for concurrent use. NewSecrets and NewConfigMaps make one.
//
// An object is in the model once it was read or is known to be missing; objects that it replaces stay until then.
// The kind is synced once all objects of the first Sync are read.
type Named struct {
	client kubernetes.Interface
	store  *model.Store
	log    *slog.Logger
	of     namedKind

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before
	named   map[model.Name][]model.Name
	uses    map[model.Name]int
	watches map[model.Name]*namedWatch
	// missing are those of the first Sync that have not been read; nil before it.
	missing map[model.Name]bool
	// unused are objects that a key no longer names, while new ones are being read.
	unused map[model.Name][]model.Name
	wg     sync.WaitGroup
}

// namedKind is what Named must know of a kind.
type namedKind struct {
	kind   model.Kind
	object runtime.Object
	list   func(ctx context.Context, c kubernetes.Interface, namespace string, o metav1.ListOptions) (runtime.Object,
		error)
	watch func(ctx context.Context, c kubernetes.Interface, namespace string, o metav1.ListOptions) (watch.Interface,
		error)
	// put writes an object of the API to the model; false if it is of another kind.
	put func(tx *model.Writer, obj any) bool
	// absent writes an object that is missing, or that cannot be read for a reason.
	absent func(tx *model.Writer, name model.Name, why string)
}

// NewSecrets returns a watcher of Secrets.
func NewSecrets(client kubernetes.Interface, store *model.Store, log *slog.Logger) *Named {
	return &Named{client: client, store: store, log: log, of: namedKind{
		kind: model.SecretKind, object: &corev1.Secret{},
		list: func(ctx context.Context, c kubernetes.Interface, ns string, o metav1.ListOptions) (runtime.Object,
			error) {
			return c.CoreV1().Secrets(ns).List(ctx, o)
		},
		watch: func(ctx context.Context, c kubernetes.Interface, ns string, o metav1.ListOptions) (watch.Interface,
			error) {
			return c.CoreV1().Secrets(ns).Watch(ctx, o)
		},
		put: func(tx *model.Writer, obj any) bool {
			in, ok := obj.(*corev1.Secret)
			if ok {
				out, _ := source.Secret(in)
				tx.PutSecret(out)
			}
			return ok
		},
		absent: func(tx *model.Writer, name model.Name, why string) {
			tx.PutSecret(&model.Secret{Name: name, Wrong: why, Missing: why == ""})
		},
	}}
}

// NewConfigMaps returns a watcher of ConfigMaps.
func NewConfigMaps(client kubernetes.Interface, store *model.Store, log *slog.Logger) *Named {
	return &Named{client: client, store: store, log: log, of: namedKind{
		kind: model.ConfigMapKind, object: &corev1.ConfigMap{},
		list: func(ctx context.Context, c kubernetes.Interface, ns string, o metav1.ListOptions) (runtime.Object,
			error) {
			return c.CoreV1().ConfigMaps(ns).List(ctx, o)
		},
		watch: func(ctx context.Context, c kubernetes.Interface, ns string, o metav1.ListOptions) (watch.Interface,
			error) {
			return c.CoreV1().ConfigMaps(ns).Watch(ctx, o)
		},
		put: func(tx *model.Writer, obj any) bool {
			in, ok := obj.(*corev1.ConfigMap)
			if ok {
				out, _ := source.ConfigMap(in)
				tx.PutConfigMap(out)
			}
			return ok
		},
		absent: func(tx *model.Writer, name model.Name, why string) {
			tx.PutConfigMap(&model.ConfigMap{Name: name, Wrong: why, Missing: why == ""})
		},
	}}
}

// namedWatch is the watch of one object. It may write to the store while it is the current watch of its name.
type namedWatch struct {
	all  *Named
	name model.Name
	stop context.CancelFunc
	// read, protected by Named.mu, says that it is in the model. why is the error of the last attempt to read it.
	read bool
	why  error
}

var _ cache.ReflectorStore = (*namedWatch)(nil)

// Run keeps the watches running until ctx ends.
func (s *Named) Run(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	for name := range s.watches {
		s.start(name)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.wg.Wait()
	return ctx.Err()
}

// Sync implements reconcile.Target.
func (s *Named) Sync(_ context.Context, named map[model.Name][]model.Name) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches == nil {
		s.named, s.uses, s.watches, s.unused = map[model.Name][]model.Name{}, map[model.Name]int{},
			map[model.Name]*namedWatch{}, map[model.Name][]model.Name{}
	}
	for by := range s.named {
		if _, ok := named[by]; !ok {
			s.set(by, nil)
		}
	}
	for by, names := range named {
		s.set(by, names)
	}
	if s.missing == nil {
		s.missing = map[model.Name]bool{}
		for name := range s.watches {
			s.missing[name] = true
		}
		s.checkSynced()
	}
	return s.forget()
}

// Apply implements reconcile.Target.
func (s *Named) Apply(_ context.Context, set map[model.Name][]model.Name, del []model.Name) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for by, names := range set {
		s.set(by, names)
	}
	for _, by := range del {
		s.set(by, nil)
	}
	return s.forget()
}

// set records the names of a key, starts watches for new ones, and remembers names that may be unused now.
func (s *Named) set(by model.Name, names []model.Name) {
	for _, n := range names {
		if s.uses[n]++; s.uses[n] == 1 {
			if _, ends := s.watches[n]; !ends {
				s.watches[n] = nil
				s.start(n)
			}
		}
	}
	for _, n := range s.named[by] {
		if s.uses[n]--; s.uses[n] == 0 {
			delete(s.uses, n)
			s.unused[by] = append(s.unused[by], n)
		}
	}
	if s.named[by] = names; len(names) == 0 {
		delete(s.named, by)
	}
}

// forget stops watches of unused objects, unless a replacement has not been read yet: their users keep using them
// until then.
func (s *Named) forget() error {
	var gone []model.Name
	for by, unused := range s.unused {
		if slices.ContainsFunc(s.named[by], func(n model.Name) bool { w := s.watches[n]; return w == nil || !w.read }) {
			continue
		}
		delete(s.unused, by)
		for _, n := range unused {
			w, watched := s.watches[n]
			if s.uses[n] > 0 || !watched {
				continue
			}
			if w != nil {
				w.stop()
			}
			delete(s.watches, n)
			s.read(n)
			gone = append(gone, n)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return s.store.WriteKinds(s.of.kind, func(w *model.Writer) {
		for _, n := range gone {
			w.Delete(s.of.kind, n)
		}
	})
}

// start begins a watch once Run is running.
func (s *Named) start(name model.Name) {
	if s.ctx == nil || s.ctx.Err() != nil {
		return
	}
	ctx, stop := context.WithCancel(s.ctx)
	w := &namedWatch{all: s, name: name, stop: stop}
	s.watches[name] = w
	s.wg.Go(func() {
		late := time.AfterFunc(namedWithin, w.late)
		defer late.Stop()
		w.run(ctx)
	})
}

// read records that an object of the first Sync is done.
func (s *Named) read(name model.Name) {
	if s.missing[name] {
		delete(s.missing, name)
		s.checkSynced()
	}
}

func (s *Named) checkSynced() {
	if s.missing != nil && len(s.missing) == 0 {
		s.store.MarkSynced(s.of.kind)
	}
}

// Watched returns the number of watched objects.
func (s *Named) Watched() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.watches)
}

func (w *namedWatch) run(ctx context.Context) {
	n, one := w.all, fields.OneTermEqualSelector(metav1.ObjectNameField, w.name.Name).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = one
			list, err := n.of.list(ctx, n.client, w.name.Namespace, o)
			w.failed(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = one
			return n.of.watch(ctx, n.client, w.name.Namespace, o)
		},
	}
	cache.NewReflectorWithOptions(lw, n.of.object, w, cache.ReflectorOptions{Name: n.of.kind.String() + " " +
		w.name.String()}).RunWithContext(ctx)
}

// failed records that the object cannot be read now. It is retried unless access is denied.
func (w *namedWatch) failed(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	w.all.mu.Lock()
	w.why = err
	w.all.mu.Unlock()
	if apierrors.IsForbidden(err) {
		w.wrong(err)
	}
}

// late is called when namedWithin has passed.
func (w *namedWatch) late() {
	w.all.mu.Lock()
	err := w.why
	w.all.mu.Unlock()
	if err == nil {
		err = errors.New("no response from the API server")
	}
	w.wrong(fmt.Errorf("within %s: %w", namedWithin, err))
}

// wrong writes the reason why the object is missing. A known object stays.
func (w *namedWatch) wrong(why error) {
	w.all.mu.Lock()
	defer w.all.mu.Unlock()
	if w.read {
		return
	}
	if err := w.writeLocked(func(tx *model.Writer) {
		w.all.of.absent(tx, w.name, fmt.Sprintf("cannot be read: %v", why))
	}); err != nil {
		w.all.log.Error("named objects", "kind", w.all.of.kind, "err", err)
	}
}

func (w *namedWatch) write(put func(*model.Writer)) error {
	w.all.mu.Lock()
	defer w.all.mu.Unlock()
	return w.writeLocked(put)
}

// writeLocked writes the object, unless the watch has ended.
func (w *namedWatch) writeLocked(put func(*model.Writer)) error {
	s := w.all
	if s.watches[w.name] != w {
		return nil
	}
	if err := s.store.WriteKinds(s.of.kind, put); err != nil {
		return err
	}
	w.read = true
	s.read(w.name)
	return s.forget()
}

// none writes that the object does not exist.
func (w *namedWatch) none() error {
	return w.write(func(tx *model.Writer) { w.all.of.absent(tx, w.name, "") })
}

// is reports whether an object is the one that was requested.
func (w *namedWatch) is(obj any) bool {
	in, ok := obj.(metav1.Object)
	return ok && in.GetNamespace() == w.name.Namespace && in.GetName() == w.name.Name
}

// Add implements cache.ReflectorStore, as do the following methods.
func (w *namedWatch) Add(obj any) error { return w.Update(obj) }

// Update sets the object.
func (w *namedWatch) Update(obj any) error {
	if !w.is(obj) {
		return nil
	}
	known := true
	err := w.write(func(tx *model.Writer) { known = w.all.of.put(tx, obj) })
	if !known {
		return fmt.Errorf("%s %s: got a %T", w.all.of.kind, w.name, obj)
	}
	return err
}

// Delete removes it.
func (w *namedWatch) Delete(any) error { return w.none() }

// Replace sets the result of a list: the object, or nothing.
func (w *namedWatch) Replace(objs []any, _ string) error {
	for _, obj := range objs {
		if w.is(obj) {
			return w.Update(obj)
		}
	}
	return w.none()
}

// Resync does nothing: the store keeps no queue.
func (w *namedWatch) Resync() error { return nil }
