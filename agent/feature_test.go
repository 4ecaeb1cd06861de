package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
	"wayleave.dev/agent/internal/example"
	"wayleave.dev/config"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// dirs are folders of a node, in a temporary one whose name is short enough for sockets.
func dirs(t *testing.T) agent.Dirs {
	t.Helper()
	top := testnet.ShortDir(t)
	d := agent.Dirs{State: filepath.Join(top, "state"), Run: filepath.Join(top, "run"), Sysctl: "/proc/sys/net",
		CNIBin: filepath.Join(top, "bin"), CNIConf: filepath.Join(top, "net.d")}
	for _, dir := range []string{d.State, d.Run, d.CNIBin, d.CNIConf} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// objects are a Service with a port and one without.
func objects(t *testing.T) *model.Store {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if err := store.Write(func(w *model.Writer) {
		w.PutService(&model.Service{Name: model.Name{Namespace: "shop", Name: "web"},
			Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}})
		w.PutService(&model.Service{Name: model.Name{Namespace: "shop", Name: "none"}})
	}); err != nil {
		t.Fatal(err)
	}
	store.MarkSynced(model.AllKinds())
	return store
}

func core(store *model.Store, all ...agent.Feature) *agent.Core {
	return agent.NewCore(slog.New(slog.DiscardHandler), store, config.Default(), all)
}

// own runs an agent until stop.
func own(t *testing.T, n *agent.Node) (stop func()) {
	t.Helper()
	if err := n.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Own(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// A feature that is in one folder and in one line of the registry starts, owns, is in the status and in metrics, writes
// as the leader, goes when it is switched off, and is verified and uninstalled.
func TestAFeatureIsOneFolderAndOneLine(t *testing.T) {
	registry := []agent.Feature{
		example.New(),
	}
	d, store := dirs(t), objects(t)
	file := filepath.Join(d.CNIConf, "example_shop_web")

	n := &agent.Node{Name: "node1", Dirs: d, Core: core(store, registry...)}
	stop := own(t, n)
	testnet.Eventually(t, 10*time.Second, func() error { _, err := os.Stat(file); return err })
	testnet.Eventually(t, 10*time.Second, func() error { return n.Ready(time.Now()) })
	inStatus(t, n, file)
	page := string(n.MetricsPage().Body)
	for _, want := range []string{"wayleave_example_files 1\n", "wayleave_feature_failing{feature=\"example\"} 0\n",
		"wayleave_problems ",
		`wayleave_apply_duration_seconds_count{feature="example"}`} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is not in the metrics", want)
		}
	}
	stop()

	writesAsLeader(t, store, registry)

	off := example.New()
	off.Off = true
	switched := &agent.Node{Name: "node1", Dirs: d, Core: core(store, off)}
	stop = own(t, switched)
	testnet.Eventually(t, 10*time.Second, func() error {
		if _, err := os.Stat(file); !os.IsNotExist(err) {
			return fmt.Errorf("switched off, its file is there: %v", err)
		}
		return nil
	})
	if r := switched.Report(); !slices.Contains(r.Off, "example") {
		t.Errorf("switched off are %v", r.Off)
	}
	stop()

	isUninstalled(t, d, file, registry)
}

// inStatus asks the agent as `wayleave status` does.
func inStatus(t *testing.T, n *agent.Node, file string) {
	t.Helper()
	var r agent.Report
	testnet.Eventually(t, 10*time.Second, func() error {
		text, code, err := agent.Ask(t.Context(), filepath.Join(n.Run, "agent.sock"), "/status")
		if err != nil || code != http.StatusOK {
			return fmt.Errorf("%d, %w", code, err)
		}
		return json.Unmarshal([]byte(text), &r)
	})
	if r.Role != "owner" || !r.Features["example"].Synced || fmt.Sprint(r.Facts["example"]) != "[1 files]" {
		t.Errorf("the status is %+v", r)
	}
	if text := fmt.Sprint(r.Wrong); !strings.Contains(text, "Service shop/none: spec.ports") {
		t.Errorf("wrong is %s", text)
	}
	for _, f := range n.Features {
		l := f.(agent.Lister).List()
		if text, err := l.Text(r.Lists[l.Name], time.Now()); err != nil || text != file+"\n" {
			t.Errorf("status --%s prints %q, %v", l.Name, text, err)
		}
	}
}

func writesAsLeader(t *testing.T, store *model.Store, registry []agent.Feature) {
	t.Helper()
	c := agent.NewCluster(core(store, registry...), "writer-1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Lead(ctx) }()
	testnet.Eventually(t, 10*time.Second, func() error {
		if text := fmt.Sprint(c.Problems.List()); !strings.Contains(text, "Service shop/none: spec.ports") {
			return fmt.Errorf("the leader says %s", text)
		}
		return nil
	})
	cancel()
	<-done
	if list := c.Problems.List(); len(list) > 0 {
		t.Errorf("a former leader still says %v", list)
	}
}

func isUninstalled(t *testing.T, d agent.Dirs, file string, registry []agent.Feature) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ns, err := os.Open(testnet.New(t, "node").Path())
	if err != nil {
		t.Fatal(err)
	}
	h, err := agent.NewHost(ns, d)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Verify(t.Context(), registry); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("the file is not named by: %v", err)
	}
	for range 2 { // twice is no error
		if err := h.Uninstall(t.Context(), registry); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Verify(t.Context(), registry); err != nil {
		t.Error(err)
	}
}

// Names of features, flags of tables and files of the registry are unique: they are keys of the status.
func TestNamesOfFeaturesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range append(features.All(), example.New()) {
		names := []string{"feature " + f.Name()}
		if l, ok := f.(agent.Lister); ok {
			names = append(names, "list "+l.List().Name)
		}
		for _, name := range names {
			if seen[name] {
				t.Errorf("%s is there twice", name)
			}
			seen[name] = true
		}
	}
}

// recorder is a feature of which each part says when it begins and ends.
type recorder struct {
	mu   sync.Mutex
	said []string
}

func (r *recorder) say(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, what)
}

func (r *recorder) all() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.said, ", ")
}

func (r *recorder) part(name string) []agent.Part {
	return []agent.Part{{Name: name, Run: func(ctx context.Context) error {
		r.say(name)
		<-ctx.Done()
		r.say("end of " + name)
		return ctx.Err()
	}}}
}

func (r *recorder) Name() string                     { return "recorder" }
func (r *recorder) Enabled(config.Config) bool       { return true }
func (r *recorder) Kinds(config.Config) agent.Kinds  { return agent.Kinds{} }
func (r *recorder) Own(*agent.Node) []agent.Part     { return r.part("own") }
func (r *recorder) StandBy(*agent.Node) []agent.Part { return r.part("standby") }
func (r *recorder) Prepared(time.Time) error         { return nil }
func (r *recorder) Succeed(_ *agent.Node, standby bool) []agent.Part {
	return r.part(fmt.Sprintf("successor %t", standby))
}

// Two agents of a node: the second stands by while the first owns it, its parts of a standby have ended when it owns
// the node, and what prepares to follow goes on. No two own the node at once.
func TestAStandbyTakesOverWhenTheOwnerEnds(t *testing.T) {
	d, store := dirs(t), objects(t)
	first, second := &recorder{}, &recorder{}
	a := &agent.Node{Name: "node1", Dirs: d, Core: core(store, first)}
	stopFirst := own(t, a)
	testnet.Eventually(t, 20*time.Second, func() error {
		if said := first.all(); !strings.Contains(said, "own") ||
			!strings.Contains(said, "successor false") || !a.Owns() {
			return fmt.Errorf("the first said %q", said)
		}
		return nil
	})
	b := &agent.Node{Name: "node1", Dirs: d, Core: core(store, second)}
	stopSecond := own(t, b)
	testnet.Eventually(t, 20*time.Second, func() error {
		if said := second.all(); !strings.Contains(said, "standby") || !strings.Contains(said, "successor true") {
			return fmt.Errorf("the second said %q", said)
		}
		return nil
	})
	if awaited, err := a.Awaited(); err != nil || !awaited {
		t.Errorf("the first knows of no other: %v, %v", awaited, err)
	}
	if b.Owns() || b.Ready(time.Now()) != nil || strings.Contains(second.all(), "own") {
		t.Errorf("the second owns the node: %s, %v", second.all(), b.Ready(time.Now()))
	}
	stopFirst()
	if said := first.all(); !strings.Contains(said, "end of own") || !strings.Contains(said, "end of successor false") {
		t.Errorf("the first gave the node up and said %q", said)
	}
	testnet.Eventually(t, 20*time.Second, func() error {
		said := second.all()
		end, begin := strings.Index(said, "end of standby"), strings.Index(said, ", own")
		if !b.Owns() || end < 0 || begin < end || strings.Count(said, "successor") != 1 {
			return fmt.Errorf("the second said %q", said)
		}
		return nil
	})
	stopSecond()
}
