package model

import (
	"runtime"
	"sync"
	"testing"
)

// The choice of a store, measured at 10,000 services × 10 endpoints: statedb
// (Store) beside the plainest thing that could work (plain). Run with
//
//	go test ./model -run xxx -bench Store -benchmem
//
// plain has no consistent snapshot over kinds: a reader that wants one must hold
// the lock for as long as it reads, or copy. That, not speed, decided: see
// ARCHITECTURE.md for the numbers.
const (
	benchServices  = 10_000
	benchEndpoints = 10
)

// plain is a locked map with a set of changed keys.
type plain struct {
	mu       sync.RWMutex
	services map[Name]*Service
	slices   map[Name]*EndpointSlice
	owned    map[Name]map[Name]*EndpointSlice
	dirty    map[Name]struct{}
}

func newPlain() *plain {
	return &plain{
		services: map[Name]*Service{}, slices: map[Name]*EndpointSlice{},
		owned: map[Name]map[Name]*EndpointSlice{}, dirty: map[Name]struct{}{},
	}
}

func (p *plain) putService(s *Service) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.services[s.Name] = s
	p.dirty[s.Name] = struct{}{}
}

func (p *plain) putSlice(s *EndpointSlice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	owner := s.ServiceName()
	p.slices[s.Name] = s
	if p.owned[owner] == nil {
		p.owned[owner] = map[Name]*EndpointSlice{}
	}
	p.owned[owner][s.Name] = s
	p.dirty[owner] = struct{}{}
}

// take returns the changed services with their slices.
func (p *plain) take(fn func(*Service, map[Name]*EndpointSlice)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n := range p.dirty {
		fn(p.services[n], p.owned[n])
	}
	clear(p.dirty)
}

func fillPlain() *plain {
	p := newPlain()
	for i := range benchServices {
		p.putService(service(i))
		p.putSlice(slice(i, benchEndpoints, 0))
	}
	return p
}

func fillStore(b *testing.B) *Store {
	s := open(b)
	for i := range benchServices {
		write(b, s, func(w *Writer) { w.PutService(service(i)) })
		write(b, s, func(w *Writer) { w.PutEndpointSlice(slice(i, benchEndpoints, 0)) })
	}
	return s
}

// reportHeap reports what the filled store keeps alive.
func reportHeap(b *testing.B, keep func() any) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	alive := keep()
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MB-heap")
	runtime.KeepAlive(alive)
}

func BenchmarkStoreLoad(b *testing.B) {
	b.Run("statedb", func(b *testing.B) {
		for b.Loop() {
			fillStore(b)
		}
		reportHeap(b, func() any { return fillStore(b) })
	})
	b.Run("plain", func(b *testing.B) {
		for b.Loop() {
			fillPlain()
		}
		reportHeap(b, func() any { return fillPlain() })
	})
}

// BenchmarkStoreChange is one changed EndpointSlice, seen by a watcher that then
// reads the service and all of its endpoints.
func BenchmarkStoreChange(b *testing.B) {
	b.Run("statedb", func(b *testing.B) {
		s := fillStore(b)
		w, err := s.Watch(ServiceKind)
		if err != nil {
			b.Fatal(err)
		}
		defer w.Close()
		w.Poll()
		i := 0
		for b.Loop() {
			i++
			write(b, s, func(w *Writer) { w.PutEndpointSlice(slice(i%benchServices, benchEndpoints, i)) })
			snap, c, _ := w.Poll()
			for n := range c.Of(ServiceKind) {
				if _, ok := snap.Service(n); !ok {
					b.Fatal("lost", n)
				}
				for sl := range snap.EndpointSlices(n) {
					_ = sl.Endpoints
				}
			}
		}
	})
	b.Run("plain", func(b *testing.B) {
		p := fillPlain()
		p.take(func(*Service, map[Name]*EndpointSlice) {})
		i := 0
		for b.Loop() {
			i++
			p.putSlice(slice(i%benchServices, benchEndpoints, i))
			p.take(func(s *Service, l map[Name]*EndpointSlice) {
				for _, sl := range l {
					_ = sl.Endpoints
				}
			})
		}
	})
}
