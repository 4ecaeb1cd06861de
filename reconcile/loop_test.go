package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wayleave.dev/model"
)

// fakeTarget holds what it was told and fails where it was told to.
type fakeTarget struct {
	mu      sync.Mutex // for tests that look while time passes
	have    map[model.Name]int
	calls   []string
	failAll int                // that many calls fail whole
	failKey map[model.Name]int // that many tries of the key fail
	takes   time.Duration
}

func (f *fakeTarget) Sync(_ context.Context, plans map[model.Name]int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf("sync %d", len(plans)))
	if f.failAll > 0 {
		f.failAll--
		return errors.New("kernel says no")
	}
	f.have = map[model.Name]int{}
	return f.put(plans)
}

func (f *fakeTarget) Apply(_ context.Context, set map[model.Name]int, del []model.Name) error {
	time.Sleep(f.takes)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf("apply %d-%d", len(set), len(del)))
	if f.failAll > 0 {
		f.failAll--
		return errors.New("kernel says no")
	}
	for _, k := range del {
		delete(f.have, k)
	}
	return f.put(set)
}

func (f *fakeTarget) put(set map[model.Name]int) error {
	bad := KeyErrors[model.Name]{}
	for k, v := range set {
		if f.failKey[k] > 0 {
			f.failKey[k]--
			bad[k] = errors.New("bad key")
			continue
		}
		f.have[k] = v
	}
	if len(bad) > 0 {
		return bad
	}
	return nil
}

func name(i int) model.Name { return model.Name{Namespace: "default", Name: fmt.Sprintf("s%d", i)} }

type fixture struct {
	t       *testing.T
	store   *model.Store
	target  *fakeTarget
	health  *Health
	report  map[string][]model.Problem
	foreign chan struct{}
	wake    chan struct{}
	// extra is planned when the loop is woken, applied what AfterRound found last of the
	// seventh Service.
	mu      sync.Mutex
	extra   []model.Name
	applied bool
}

// run starts a loop whose plan of a service is its number of ports; a service
// with 99 ports is a problem.
func run(t *testing.T, fn func(w *fixture)) {
	synctest.Test(t, func(t *testing.T) {
		store, err := model.NewStore()
		if err != nil {
			t.Fatal(err)
		}
		w := &fixture{t: t, store: store, target: &fakeTarget{have: map[model.Name]int{},
			failKey: map[model.Name]int{}},
			health: NewHealth(nil, nil), report: map[string][]model.Problem{}, foreign: make(chan struct{}),
			wake: make(chan struct{})}
		loop := &Loop[model.Name, int]{
			Name: "test", Store: store, Kinds: model.ServiceKind, Target: w.target, Health: w.health,
			Foreign: w.foreign, Wake: w.wake, Log: slog.New(slog.DiscardHandler),
			Report: func(k string, p []model.Problem) { w.report[k] = p },
			Equal:  func(a, b int) bool { return a == b },
			Planner: PlannerOf(func(_ model.Snapshot, c model.Changes) (keys []model.Name) {
				for k := range c.Of(model.ServiceKind) {
					keys = append(keys, k)
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				keys, w.extra = append(keys, w.extra...), nil
				return keys
			}, func(s model.Snapshot, k model.Name) (int, bool, []model.Problem) {
				svc, ok := s.Service(k)
				if !ok {
					return 0, false, nil
				}
				if len(svc.Ports) == 99 {
					return 0, false, []model.Problem{{Kind: "Service", Object: k, Reason: "99"}}
				}
				return len(svc.Ports), true, nil
			}),
			AfterRound: func(applied func(model.Name) bool) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.applied = applied(name(7))
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = loop.Run(ctx) }()
		fn(w)
		cancel()
		<-ended
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
}

func (w *fixture) put(i, ports int) {
	err := w.store.Write(func(tx *model.Writer) {
		tx.PutService(&model.Service{Name: name(i), Ports: make([]model.ServicePort, ports)})
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *fixture) want(have map[model.Name]int) {
	w.t.Helper()
	synctest.Wait()
	if !maps.Equal(w.target.have, have) {
		w.t.Errorf("target has %v, want %v (calls %v)", w.target.have, have, w.target.calls)
	}
}

func TestNothingIsTouchedBeforeTheSourceHasSynced(t *testing.T) {
	run(t, func(w *fixture) {
		w.put(1, 1)
		synctest.Wait()
		if len(w.target.calls) != 0 {
			t.Fatalf("called %v before the sync", w.target.calls)
		}
		w.store.MarkSynced(model.ServiceKind)
		w.want(map[model.Name]int{name(1): 1})
	})
}

func TestOnlyChangedKeysAreApplied(t *testing.T) {
	run(t, func(w *fixture) {
		for i := range 10 {
			w.put(i, 1)
		}
		w.store.MarkSynced(model.ServiceKind)
		synctest.Wait()
		w.put(3, 2)
		synctest.Wait()
		w.put(3, 2) // an equal plan is not applied again
		synctest.Wait()
		if got, want := fmt.Sprint(w.target.calls), "[sync 10 apply 1-0]"; got != want {
			t.Errorf("calls %s, want %s", got, want)
		}
	})
}

func TestOneBadKeyStopsNoOther(t *testing.T) {
	run(t, func(w *fixture) {
		w.target.failKey[name(1)] = 2
		w.put(1, 1)
		w.put(2, 1)
		w.store.MarkSynced(model.ServiceKind)
		w.want(map[model.Name]int{name(2): 1})
		w.put(3, 1) // others go on while the bad one waits
		w.want(map[model.Name]int{name(2): 1, name(3): 1})
		if s := w.health.State(); s.Error == "" || !s.Synced || !s.Partial {
			t.Errorf("the failure of one key is not in the health: %+v", s)
		}
		time.Sleep(time.Second)
		w.want(map[model.Name]int{name(1): 1, name(2): 1, name(3): 1})
		if e := w.health.State().Error; e != "" {
			t.Errorf("health still says %q", e)
		}
	})
}

func TestAnUnknownStateIsSyncedAgain(t *testing.T) {
	run(t, func(w *fixture) {
		w.store.MarkSynced(model.ServiceKind)
		synctest.Wait()
		w.target.failAll = 3
		w.put(1, 1)
		time.Sleep(5 * time.Second)
		w.want(map[model.Name]int{name(1): 1})
		if got, want := fmt.Sprint(w.target.calls), "[sync 0 apply 1-0 sync 1 sync 1 sync 1]"; got != want {
			t.Errorf("calls %s, want %s", got, want)
		}
	})
}

func TestAForeignChangeIsRepaired(t *testing.T) {
	run(t, func(w *fixture) {
		w.put(1, 1)
		w.store.MarkSynced(model.ServiceKind)
		synctest.Wait()
		w.target.have = map[model.Name]int{}
		w.foreign <- struct{}{}
		w.want(map[model.Name]int{name(1): 1})
		if got := w.health.State().Repairs; got != 1 {
			t.Errorf("%d repairs counted, want 1", got)
		}
	})
}

func TestAProblemIsReportedAndTakenBack(t *testing.T) {
	run(t, func(w *fixture) {
		w.put(1, 99)
		w.put(2, 1)
		w.store.MarkSynced(model.ServiceKind)
		w.want(map[model.Name]int{name(2): 1})
		if len(w.report[name(1).String()]) != 1 {
			t.Errorf("reports %v", w.report)
		}
		w.put(1, 1)
		w.want(map[model.Name]int{name(1): 1, name(2): 1})
		if len(w.report[name(1).String()]) != 0 {
			t.Errorf("reports %v", w.report)
		}
	})
}

// The first change of a burst goes at once; what comes meanwhile goes together.
func TestABurstIsTwoCommits(t *testing.T) {
	run(t, func(w *fixture) {
		w.target.takes = 100 * time.Millisecond
		w.store.MarkSynced(model.ServiceKind)
		synctest.Wait()
		for i := range 50 {
			w.put(i, 1)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got, want := fmt.Sprint(w.target.calls), "[sync 0 apply 1-0 apply 49-0]"; got != want {
			t.Errorf("calls %s, want %s", got, want)
		}
	})
}

func TestAWokenLoopPlansAndReportsWhatIsApplied(t *testing.T) {
	run(t, func(w *fixture) {
		applied := func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.applied
		}
		w.store.MarkSynced(model.ServiceKind)
		synctest.Wait()
		if !applied() {
			t.Error("a key that nobody wants is not applied")
		}
		w.target.failKey[name(7)] = 1
		w.put(7, 1)
		synctest.Wait()
		if applied() {
			t.Error("a key that failed is applied")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !applied() {
			t.Error("the retried key is not applied")
		}
		before := len(w.target.calls)
		w.mu.Lock()
		w.extra = []model.Name{name(7)}
		w.mu.Unlock()
		w.wake <- struct{}{}
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.extra) != 0 || len(w.target.calls) != before {
			t.Errorf("woken: %v left, calls %v: equal plans are not applied again", w.extra, w.target.calls[before:])
		}
	})
}
