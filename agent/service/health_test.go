package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/config"
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
	n := &agent.Node{Name: "node1",
		Core: agent.NewCore(slog.New(slog.DiscardHandler), store, config.Config{}, nil)}
	put := func(leaving bool) {
		if err := store.Write(func(w *model.Writer) {
			w.PutNode(&model.Node{Name: "node1", Leaving: leaving})
		}); err != nil {
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
			n.SetHealth("service", ran(t, store, row.err))
			for path, want := range map[string]int{"healthz": row.healthz, "livez": row.livez} {
				w := livez(n)
				if path == "healthz" {
					w = healthz(n)
				}
				var got map[string]any
				if err := json.Unmarshal(w.Body, &got); err != nil || w.Status != want ||
					got["healthy"] != row.healthy || got["lastUpdated"] == nil || got["currentTime"] == nil {
					t.Errorf("%s: %d %s, want %d", path, w.Status, w.Body, want)
				}
				if _, shown := got["nodeEligible"]; shown != (path == "healthz") || shown &&
					got["nodeEligible"] == row.leaving {
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
	loop := &reconcile.Loop[string, int]{Name: "service", Store: store, Kinds: model.NodeKind, Target: target{err},
		Health: h, Log: slog.New(slog.DiscardHandler),
		Planner: reconcile.PlannerOf(func(model.Snapshot, model.Changes) []string { return nil },
			func(model.Snapshot, string) (int, bool, []model.Problem) { return 0, false, nil }),
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

// A kube-proxy that lives is found by what it says, and an older agent of ours is none.
func TestKubeProxyAliveIsFound(t *testing.T) {
	ns := testnet.New(t, "node")
	dial := func(_ context.Context, network, addr string) (net.Conn, error) {
		return ns.Dial(network, addr, time.Second)
	}
	if mode, found := kubeProxy(t.Context(), dial); found {
		t.Errorf("found %q where nobody is", mode)
	}
	l := ns.Listen("tcp", "127.0.0.1:10249")
	var ours atomic.Bool
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ours.Load() {
			w.Header().Set("Server", "wayleave")
		}
		fmt.Fprint(w, "ipvs")
	})}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	if mode, found := kubeProxy(t.Context(), dial); !found || mode != "ipvs" {
		t.Errorf("found %q, %v", mode, found)
	}
	ours.Store(true)
	if mode, found := kubeProxy(t.Context(), dial); found {
		t.Errorf("our own agent was taken for %q", mode)
	}
}
