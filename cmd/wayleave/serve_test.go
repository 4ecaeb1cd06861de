package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// :10256 says what kube-proxy says: unhealthy while the proxy is behind, and for load
// balancers while the node is being deleted.
func TestHealthAsKubeProxySaysIt(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	store.MarkSynced(model.NodeKind)
	a := &agent{node: "node1", store: store, log: slog.New(slog.DiscardHandler), healths: map[string]*reconcile.Health{}, wrong: map[string]string{}}
	put := func(leaving bool) {
		if err := store.Write(func(w *model.Writer) { w.PutNode(&model.Node{Name: "node1", Leaving: leaving}) }); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		name           string
		err            error
		leaving        bool
		healthz, livez int
		healthy        bool
	}{
		{"good", nil, false, 200, 200, true},
		{"being deleted", nil, true, 503, 200, true},
		{"behind", errors.New("no kernel"), false, 503, 503, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			put(row.leaving)
			a.healths["service"] = ran(t, store, row.err)
			for path, want := range map[string]int{"healthz": row.healthz, "livez": row.livez} {
				w := httptest.NewRecorder()
				if path == "healthz" {
					a.healthz(w, nil)
				} else {
					a.livez(w, nil)
				}
				var got map[string]any
				if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != want || got["healthy"] != row.healthy || got["lastUpdated"] == nil || got["currentTime"] == nil {
					t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, want)
				}
				if _, shown := got["nodeEligible"]; shown != (path == "healthz") || shown && got["nodeEligible"] == row.leaving {
					t.Errorf("%s: %s", path, w.Body)
				}
			}
		})
	}
}

// target is a data plane that does as it is told.
type target struct{ err error }

func (x target) Sync(context.Context, map[string]int) error            { return x.err }
func (x target) Apply(context.Context, map[string]int, []string) error { return x.err }

// ran is the health of a loop after its first Sync.
func ran(t *testing.T, store *model.Store, err error) *reconcile.Health {
	t.Helper()
	h := reconcile.NewHealth(nil, nil)
	loop := &reconcile.Loop[string, int]{Name: "service", Store: store, Kinds: model.NodeKind, Target: target{err}, Health: h, Log: slog.New(slog.DiscardHandler),
		Keys:  func(model.Snapshot, model.Changes) []string { return nil },
		Plan:  func(model.Snapshot, string) (int, bool, []model.Problem) { return 0, false, nil },
		Equal: func(a, b int) bool { return a == b }}
	go func() { _ = loop.Run(t.Context()) }()
	testnet.Eventually(t, 5*time.Second, func() error {
		if s := h.State(); !s.Synced && s.Error == "" {
			return errors.New("has not run")
		}
		return nil
	})
	return h
}
