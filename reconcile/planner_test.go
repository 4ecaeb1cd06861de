package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"wayleave.dev/model"
)

// totals plans for each namespace how many ports its Services have. It follows the Services in Keys, so Plan works
// only in rounds.
type totals struct {
	t     *testing.T
	ports map[model.Name]int
	open  map[string]bool // keys of the round that are not planned yet
	round int             // number of Services in the snapshot of the round
}

func (p *totals) Keys(snap model.Snapshot, c model.Changes) (keys []string) {
	if len(p.open) > 0 {
		p.t.Errorf("a round ended without plans of %v", p.open)
	}
	p.open, p.round = map[string]bool{}, snap.Count(model.ServiceKind)
	for n := range c.Of(model.ServiceKind) {
		delete(p.ports, n)
		if s, ok := snap.Service(n); ok {
			p.ports[n] = len(s.Ports)
		}
		p.open[n.Namespace] = true
	}
	for ns := range p.open {
		keys = append(keys, ns)
	}
	return keys
}

func (p *totals) Plan(snap model.Snapshot, ns string) (sum int, ok bool, _ []model.Problem) {
	if !p.open[ns] || snap.Count(model.ServiceKind) != p.round {
		p.t.Errorf("%s is planned out of its round", ns)
	}
	delete(p.open, ns)
	for n, ports := range p.ports {
		if n.Namespace == ns {
			sum, ok = sum+ports, true
		}
	}
	return sum, ok, nil
}

// counts holds plans by namespace; its first calls fail.
type counts struct {
	have  map[string]int
	fails int
}

func (c *counts) Sync(_ context.Context, plans map[string]int) error {
	if c.fails--; c.fails >= 0 {
		return errors.New("no")
	}
	c.have = plans
	return nil
}

func (c *counts) Apply(_ context.Context, set map[string]int, del []string) error {
	if c.fails--; c.fails >= 0 {
		return errors.New("no")
	}
	maps.Copy(c.have, set)
	for _, k := range del {
		delete(c.have, k)
	}
	return nil
}

// A planner with state sees each change once, and plans each key of a round with the snapshot of that round, also when
// targets fail, and when it is woken without a change.
func TestAPlannerIsCalledInRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := model.NewStore()
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		target, wake := &counts{fails: 3}, make(chan struct{})
		loop := &Loop[string, int]{Name: "test", Store: store, Kinds: model.ServiceKind, Wake: wake,
			Planner: &totals{t: t, ports: map[model.Name]int{}}, Equal: func(a, b int) bool { return a == b },
			Target: target, Health: NewHealth(nil, nil), Log: slog.New(slog.DiscardHandler)}
		put := func(ns, name string, ports int) {
			t.Helper()
			if err := store.Write(func(w *model.Writer) {
				w.PutService(&model.Service{Name: model.Name{Namespace: ns, Name: name},
					Ports: make([]model.ServicePort, ports)})
			}); err != nil {
				t.Fatal(err)
			}
		}
		put("a", "1", 1)
		put("a", "2", 2)
		put("b", "1", 4)
		store.MarkSynced(model.ServiceKind)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = loop.Run(ctx) }()
		expect := func(want map[string]int) {
			t.Helper()
			time.Sleep(time.Minute)
			synctest.Wait()
			if !maps.Equal(target.have, want) {
				t.Errorf("planned %v, want %v", target.have, want)
			}
		}
		expect(map[string]int{"a": 3, "b": 4})
		target.fails = 2
		put("a", "2", 10)
		wake <- struct{}{}
		if err := store.Write(func(w *model.Writer) {
			w.Delete(model.ServiceKind, model.Name{Namespace: "b", Name: "1"})
		}); err != nil {
			t.Fatal(err)
		}
		expect(map[string]int{"a": 11})
		cancel()
		<-ended
	})
}
