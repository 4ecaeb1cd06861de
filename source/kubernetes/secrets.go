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

// secretWithin is how long a Secret may take to be read. After that the model contains it with the error, and nothing
// waits for it any longer.
const secretWithin = 10 * time.Second

// Secrets watches single Secrets by name, as long as a key names them. No other Secret is ever requested. It is a
// reconcile.Target: keys are the objects that name Secrets, plans are the names. Run must be running; the other
// methods are safe for concurrent use.
//
// A Secret is in the model once it was read or is known to be missing; Secrets that it replaces stay until then.
// SecretKind is synced once all Secrets of the first Sync are read.
type Secrets struct {
	Client kubernetes.Interface
	Store  *model.Store
	Log    *slog.Logger

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before
	named   map[model.Name][]model.Name
	uses    map[model.Name]int
	watches map[model.Name]*secretWatch
	// missing are those of the first Sync that have not been read; nil before it.
	missing map[model.Name]bool
	// unused are Secrets that a key no longer names, while new ones are being read.
	unused map[model.Name][]model.Name
	wg     sync.WaitGroup
}

// secretWatch is the watch of one Secret. It may write to the store while it is the current watch of its name.
type secretWatch struct {
	of   *Secrets
	name model.Name
	stop context.CancelFunc
	// read, protected by Secrets.mu, says that it is in the model. why is the error of the last attempt to read it.
	read bool
	why  error
}

var _ cache.ReflectorStore = (*secretWatch)(nil)

// Run keeps the watches running until ctx ends.
func (s *Secrets) Run(ctx context.Context) error {
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
func (s *Secrets) Sync(_ context.Context, named map[model.Name][]model.Name) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches == nil {
		s.named, s.uses, s.watches, s.unused = map[model.Name][]model.Name{}, map[model.Name]int{},
			map[model.Name]*secretWatch{}, map[model.Name][]model.Name{}
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
func (s *Secrets) Apply(_ context.Context, set map[model.Name][]model.Name, del []model.Name) error {
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
func (s *Secrets) set(by model.Name, names []model.Name) {
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

// forget stops watches of unused Secrets, unless a replacement has not been read yet: their users keep using them
// until then.
func (s *Secrets) forget() error {
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
	return s.Store.WriteKinds(model.SecretKind, func(w *model.Writer) {
		for _, n := range gone {
			w.Delete(model.SecretKind, n)
		}
	})
}

// start begins a watch once Run is running.
func (s *Secrets) start(name model.Name) {
	if s.ctx == nil || s.ctx.Err() != nil {
		return
	}
	ctx, stop := context.WithCancel(s.ctx)
	w := &secretWatch{of: s, name: name, stop: stop}
	s.watches[name] = w
	s.wg.Go(func() {
		late := time.AfterFunc(secretWithin, w.late)
		defer late.Stop()
		w.run(ctx)
	})
}

// read records that a Secret of the first Sync is done.
func (s *Secrets) read(name model.Name) {
	if s.missing[name] {
		delete(s.missing, name)
		s.checkSynced()
	}
}

func (s *Secrets) checkSynced() {
	if s.missing != nil && len(s.missing) == 0 {
		s.Store.MarkSynced(model.SecretKind)
	}
}

// Watched returns the number of watched Secrets.
func (s *Secrets) Watched() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.watches)
}

func (w *secretWatch) run(ctx context.Context) {
	client := w.of.Client.CoreV1().Secrets(w.name.Namespace)
	one := fields.OneTermEqualSelector(metav1.ObjectNameField, w.name.Name).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = one
			list, err := client.List(ctx, o)
			w.failed(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = one
			return client.Watch(ctx, o)
		},
	}
	cache.NewReflectorWithOptions(lw, &corev1.Secret{}, w, cache.ReflectorOptions{Name: "secret " +
		w.name.String()}).RunWithContext(ctx)
}

// failed records that the Secret cannot be read now. It is retried unless access is denied.
func (w *secretWatch) failed(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	w.of.mu.Lock()
	w.why = err
	w.of.mu.Unlock()
	if apierrors.IsForbidden(err) {
		w.wrong(err)
	}
}

// late is called when secretWithin has passed.
func (w *secretWatch) late() {
	w.of.mu.Lock()
	err := w.why
	w.of.mu.Unlock()
	if err == nil {
		err = errors.New("no response from the API server")
	}
	w.wrong(fmt.Errorf("within %s: %w", secretWithin, err))
}

// wrong writes the reason why the Secret is missing. A known Secret stays.
func (w *secretWatch) wrong(why error) {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if w.read {
		return
	}
	if err := w.putLocked(&model.Secret{Name: w.name, Wrong: fmt.Sprintf("cannot be read: %v", why)}); err != nil {
		w.of.Log.Error("secrets", "err", err)
	}
}

func (w *secretWatch) put(secret *model.Secret) error {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	return w.putLocked(secret)
}

// putLocked writes the Secret, unless the watch has ended.
func (w *secretWatch) putLocked(secret *model.Secret) error {
	s := w.of
	if s.watches[w.name] != w {
		return nil
	}
	if err := s.Store.WriteKinds(model.SecretKind, func(tx *model.Writer) { tx.PutSecret(secret) }); err != nil {
		return err
	}
	w.read = true
	s.read(w.name)
	return s.forget()
}

// none writes that the Secret does not exist.
func (w *secretWatch) none() error {
	return w.put(&model.Secret{Name: w.name, Missing: true})
}

// Add implements cache.ReflectorStore, as do the following methods.
func (w *secretWatch) Add(obj any) error { return w.Update(obj) }

// Update sets the Secret.
func (w *secretWatch) Update(obj any) error {
	in, ok := obj.(*corev1.Secret)
	if !ok {
		return fmt.Errorf("secret %s: got a %T", w.name, obj)
	}
	if in.Namespace != w.name.Namespace || in.Name != w.name.Name {
		return nil // not requested
	}
	out, _ := source.Secret(in)
	return w.put(out)
}

// Delete removes it.
func (w *secretWatch) Delete(any) error { return w.none() }

// Replace sets the result of a list: the Secret, or nothing.
func (w *secretWatch) Replace(objs []any, _ string) error {
	for _, obj := range objs {
		if in, ok := obj.(*corev1.Secret); ok && in.Name == w.name.Name && in.Namespace == w.name.Namespace {
			return w.Update(obj)
		}
	}
	return w.none()
}

// Resync does nothing: the store keeps no queue.
func (w *secretWatch) Resync() error { return nil }
