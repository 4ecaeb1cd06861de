package reconcile

import (
	"sync"
	"time"
)

// Health is what a feature's loop tells of itself; safe for concurrent use.
type Health struct {
	mu sync.Mutex
	s  State
	// observe gets the time from seeing a change to its commit, may be nil.
	observe func(whole bool, took time.Duration)
	count   func(what string)
}

// State is a moment of a Health.
type State struct {
	// Synced is true once a first Sync succeeded, for all keys or all but some.
	Synced bool `json:"synced"`
	// LastApplied is when the last change was committed.
	LastApplied time.Time `json:"lastApplied"`
	// LastTook is how long that took, from seeing the change to its commit.
	LastTook time.Duration `json:"lastTook"`
	// Keys is the number of plans in force.
	Keys int `json:"keys"`
	// Error is what does not work now, empty when all is well.
	Error string `json:"error,omitempty"`
	// Partial says that Error is about some keys, and all others hold.
	Partial bool `json:"partial,omitempty"`
	// ErrorSince is when Error began.
	ErrorSince time.Time `json:"errorSince,omitzero"`
	// Errors and Repairs count failures and repaired foreign changes.
	Errors  int `json:"errors"`
	Repairs int `json:"repairs"`
}

// NewHealth makes a Health that hands durations and the events "error" and
// "repair" to the metrics given, each of which may be nil.
func NewHealth(observe func(whole bool, took time.Duration), count func(what string)) *Health {
	return &Health{observe: observe, count: count}
}

// State returns the present state.
func (h *Health) State() State {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.s
}

func (h *Health) applied(whole bool, took time.Duration, keys int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.s.Synced, h.s.Keys = true, keys
	h.s.LastApplied, h.s.LastTook = time.Now(), took
	h.s.Error, h.s.ErrorSince, h.s.Partial = "", time.Time{}, false
	if h.observe != nil {
		h.observe(whole, took)
	}
}

func (h *Health) failed(err error, keys int, partial bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.s.Error == "" {
		h.s.ErrorSince = time.Now()
	}
	h.s.Error, h.s.Keys, h.s.Partial = err.Error(), keys, partial
	h.s.Synced = h.s.Synced || partial
	h.s.Errors++
	if h.count != nil {
		h.count("error")
	}
}

// progressed is applied while single keys still fail, with what is wrong with them.
func (h *Health) progressed(err error, took time.Duration, keys int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.s.Synced, h.s.Keys = true, keys
	h.s.LastApplied, h.s.LastTook = time.Now(), took
	h.s.Error, h.s.Partial = err.Error(), true
	if h.observe != nil {
		h.observe(false, took)
	}
}

func (h *Health) foreign() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.s.Repairs++
	if h.count != nil {
		h.count("repair")
	}
}
