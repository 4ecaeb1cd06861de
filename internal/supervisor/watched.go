package supervisor

import "sync"

// Watched is a value with a signal of its changes. The zero Watched is ready for use; its methods are safe for
// concurrent use.
type Watched[T any] struct {
	mu      sync.Mutex
	value   T
	changed chan struct{}
}

// Watch returns the value, and a channel that is closed at the next change.
func (w *Watched[T]) Watch() (T, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed == nil {
		w.changed = make(chan struct{})
	}
	return w.value, w.changed
}

// Change changes the value.
func (w *Watched[T]) Change(change func(*T)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.value)
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}
