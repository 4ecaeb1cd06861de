package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
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

// firstSecrets is how long SecretKind waits for the Secrets that are named at start: one
// that does not come holds up nothing more.
const firstSecrets = 10 * time.Second

// Secrets watches single Secrets, by name, as long as somebody names them. No other Secret
// is ever asked for. It is a reconcile.Target: the keys are who names, the plans what.
// Run must be running; the other methods may be called concurrently.
//
// SecretKind is synced once those of the first Sync have been read, could not be read, or
// let wait too long.
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
	wg      sync.WaitGroup
}

// secretWatch is the watch of one Secret. It may write to the store as long as it is the
// one of its name.
type secretWatch struct {
	of   *Secrets
	name model.Name
	stop context.CancelFunc
}

var _ cache.ReflectorStore = (*secretWatch)(nil)

// Run keeps the watches going until ctx ends.
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
		s.named, s.uses, s.watches = map[model.Name][]model.Name{}, map[model.Name]int{}, map[model.Name]*secretWatch{}
	}
	var unused []model.Name
	for by := range s.named {
		if _, ok := named[by]; !ok {
			unused = append(unused, s.set(by, nil)...)
		}
	}
	for by, names := range named {
		unused = append(unused, s.set(by, names)...)
	}
	if s.missing == nil {
		s.missing = map[model.Name]bool{}
		for name := range s.watches {
			s.missing[name] = true
		}
		time.AfterFunc(firstSecrets, func() { s.Store.MarkSynced(model.SecretKind) })
		s.checkSynced()
	}
	return s.forget(unused)
}

// Apply implements reconcile.Target.
func (s *Secrets) Apply(_ context.Context, set map[model.Name][]model.Name, del []model.Name) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var unused []model.Name
	for by, names := range set {
		unused = append(unused, s.set(by, names)...)
	}
	for _, by := range del {
		unused = append(unused, s.set(by, nil)...)
	}
	return s.forget(unused)
}

// set books what is named by one, begins watches for what is new, and returns what may be
// named by nobody any more.
func (s *Secrets) set(by model.Name, names []model.Name) (unused []model.Name) {
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
			unused = append(unused, n)
		}
	}
	if s.named[by] = names; len(names) == 0 {
		delete(s.named, by)
	}
	return unused
}

// forget ends the watches of those that are still named by nobody.
func (s *Secrets) forget(unused []model.Name) error {
	var gone []model.Name
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
	if len(gone) == 0 {
		return nil
	}
	return s.Store.WriteKinds(model.SecretKind, func(w *model.Writer) {
		for _, n := range gone {
			w.Delete(model.SecretKind, n)
		}
	})
}

// start begins a watch, once Run runs.
func (s *Secrets) start(name model.Name) {
	if s.ctx == nil || s.ctx.Err() != nil {
		return
	}
	ctx, stop := context.WithCancel(s.ctx)
	w := &secretWatch{of: s, name: name, stop: stop}
	s.watches[name] = w
	s.wg.Go(func() { w.run(ctx) })
}

// read notes that a Secret of the first Sync was dealt with.
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

// Watched is how many Secrets are.
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
			w.failed(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = one
			return client.Watch(ctx, o)
		},
	}
	cache.NewReflectorWithOptions(lw, &corev1.Secret{}, w, cache.ReflectorOptions{Name: "secret " + w.name.String()}).RunWithContext(ctx)
}

// failed notes that the Secret cannot be read now. What is known of it stays, but that we
// may not read it is said in its place.
func (w *secretWatch) failed(err error) {
	if err == nil {
		return
	}
	_, known := w.of.Store.Snapshot().Secret(w.name)
	if apierrors.IsForbidden(err) && !known {
		if err := w.put(&model.Secret{Name: w.name, Wrong: fmt.Sprintf("cannot be read: %v", err)}); err != nil {
			w.of.Log.Error("secrets", "err", err)
		}
	}
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if w.of.watches[w.name] == w {
		w.of.read(w.name)
	}
}

// put writes the Secret, or that there is none, unless the watch has ended meanwhile.
func (w *secretWatch) put(secret *model.Secret) error {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if w.of.watches[w.name] != w {
		return nil
	}
	err := w.of.Store.WriteKinds(model.SecretKind, func(tx *model.Writer) {
		if secret == nil {
			tx.Delete(model.SecretKind, w.name)
			return
		}
		tx.PutSecret(secret)
	})
	if err == nil {
		w.of.read(w.name)
	}
	return err
}

// Add implements cache.ReflectorStore, as the methods that follow.
func (w *secretWatch) Add(obj any) error { return w.Update(obj) }

// Update sets the Secret.
func (w *secretWatch) Update(obj any) error {
	in, ok := obj.(*corev1.Secret)
	if !ok {
		return fmt.Errorf("secret %s: got a %T", w.name, obj)
	}
	if in.Namespace != w.name.Namespace || in.Name != w.name.Name {
		return nil // not asked for
	}
	out, _ := source.Secret(in)
	return w.put(out)
}

// Delete removes it.
func (w *secretWatch) Delete(any) error { return w.put(nil) }

// Replace sets what a list has: the Secret, or nothing.
func (w *secretWatch) Replace(objs []any, _ string) error {
	for _, obj := range objs {
		if in, ok := obj.(*corev1.Secret); ok && in.Name == w.name.Name && in.Namespace == w.name.Namespace {
			return w.Update(obj)
		}
	}
	return w.put(nil)
}

// Resync has nothing to do: nothing is held here.
func (w *secretWatch) Resync() error { return nil }
