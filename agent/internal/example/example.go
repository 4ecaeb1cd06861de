// Package example is a feature with everything that a feature can need, for tests and for whoever writes the next one.
// It keeps a file for each Service in the folder of the container runtime's configuration.
package example

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// Feature is the example.
type Feature struct {
	// Off stands for the setting that switches a feature off.
	Off bool
	// files counts what is kept.
	files atomic.Int64
	gauge prometheus.Gauge
}

var (
	_ agent.Feature     = (*Feature)(nil)
	_ agent.Owner       = (*Feature)(nil)
	_ agent.Leaver      = (*Feature)(nil)
	_ agent.Reporter    = (*Feature)(nil)
	_ agent.Lister      = (*Feature)(nil)
	_ agent.Metered     = (*Feature)(nil)
	_ agent.Writer      = (*Feature)(nil)
	_ agent.Uninstaller = (*Feature)(nil)
)

// New makes the feature of one process.
func New() *Feature {
	return &Feature{gauge: prometheus.NewGauge(prometheus.GaugeOpts{Name: "wayleave_example_files",
		Help: "Files of the example."})}
}

// Name implements agent.Feature.
func (f *Feature) Name() string { return "example" }

// Enabled implements agent.Feature.
func (f *Feature) Enabled(config.Config) bool { return !f.Off }

// Kinds implements agent.Feature: Services are read for every feature.
func (f *Feature) Kinds(config.Config) agent.Kinds { return agent.Kinds{} }

// Own implements agent.Owner: files are written only by the owner of the node.
func (f *Feature) Own(n *agent.Node) []agent.Part {
	loop := &reconcile.Loop[model.Name, string]{
		Name: f.Name(), Store: n.Store, Kinds: model.ServiceKind,
		Planner: reconcile.PlannerOf(keys, plan), Equal: func(a, b string) bool { return a == b },
		Target: &target{f, n.CNIConf},
		Health: n.Health(f.Name()), Log: n.Log, Report: n.ReportTo(f.Name()),
	}
	return []agent.Part{{Name: f.Name(), Run: loop.Run}}
}

// keys are the Services that changed.
func keys(_ model.Snapshot, c model.Changes) []model.Name {
	return slices.Collect(maps.Keys(c.Of(model.ServiceKind)))
}

// plan is pure: one Service becomes what its file holds.
func plan(snap model.Snapshot, k model.Name) (string, bool, []model.Problem) {
	s, ok := snap.Service(k)
	if !ok {
		return "", false, nil
	}
	if len(s.Ports) == 0 {
		return "", false, []model.Problem{{Kind: "Service", Object: k, Field: "spec.ports",
			Reason: "there is none; a Service with ports has a file; none is written"}}
	}
	return fmt.Sprintf("%s has %d ports\n", k, len(s.Ports)), true, nil
}

// target brings files about.
type target struct {
	feature *Feature
	dir     string
}

// Sync implements reconcile.Target.
func (t *target) Sync(ctx context.Context, all map[model.Name]string) error {
	have, err := files(t.dir)
	if err != nil {
		return err
	}
	var old []model.Name
	for _, path := range have {
		ns, name, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), prefix), "_")
		if k := (model.Name{Namespace: ns, Name: name}); all[k] == "" {
			old = append(old, k)
		}
	}
	return t.Apply(ctx, all, old)
}

// Apply implements reconcile.Target.
func (t *target) Apply(_ context.Context, set map[model.Name]string, del []model.Name) error {
	var errs []error
	for k, text := range set {
		errs = append(errs, os.WriteFile(file(t.dir, k), []byte(text), 0o600))
	}
	for _, k := range del {
		if err := os.Remove(file(t.dir, k)); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	have, err := files(t.dir)
	t.feature.files.Store(int64(len(have)))
	t.feature.gauge.Set(float64(len(have)))
	return errors.Join(append(errs, err)...)
}

// prefix is what names of files begin with.
const prefix = "example_"

func file(dir string, k model.Name) string { return filepath.Join(dir, prefix+k.Namespace+"_"+k.Name) }

func files(dir string) ([]string, error) { return filepath.Glob(filepath.Join(dir, prefix+"*")) }

func remove(dir string) error {
	have, err := files(dir)
	errs := []error{err}
	for _, path := range have {
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
}

// Leave implements agent.Leaver: what was written before the feature was switched off goes.
func (f *Feature) Leave(n *agent.Node) []agent.Part {
	return []agent.Part{{Name: f.Name(), Run: func(context.Context) error { return remove(n.CNIConf) }}}
}

// Facts implements agent.Reporter.
func (f *Feature) Facts(*agent.Node, model.Snapshot) []string {
	return []string{fmt.Sprintf("%d files", f.files.Load())}
}

// List implements agent.Lister.
func (f *Feature) List() agent.List {
	return agent.List{Name: "examples", Help: "the files of the example",
		Text: func(raw json.RawMessage, _ time.Time) (string, error) {
			var rows []string
			if raw != nil {
				if err := json.Unmarshal(raw, &rows); err != nil {
					return "", err
				}
			}
			return strings.Join(append(rows, ""), "\n"), nil
		}}
}

// Rows implements agent.Lister.
func (f *Feature) Rows(n *agent.Node, _ model.Snapshot) any {
	have, err := files(n.CNIConf)
	if err != nil {
		return nil
	}
	return have
}

// Metrics implements agent.Metered.
func (f *Feature) Metrics(*agent.Node) []prometheus.Collector { return []prometheus.Collector{f.gauge} }

// WriterKinds implements agent.Writer.
func (f *Feature) WriterKinds(config.Config) agent.Kinds { return agent.Kinds{} }

// Write implements agent.Writer: the leader finds what is wrong with Services.
func (f *Feature) Write(c *agent.Cluster) []agent.Part {
	find := func(snap model.Snapshot, k model.Name) []model.Problem {
		_, _, problems := plan(snap, k)
		return problems
	}
	return []agent.Part{agent.Check(c, f.Name(), model.ServiceKind, keys, find, nil)}
}

// Uninstall implements agent.Uninstaller.
func (f *Feature) Uninstall(_ context.Context, h *agent.Host) error { return remove(h.CNIConf) }

// Remains implements agent.Uninstaller.
func (f *Feature) Remains(_ context.Context, h *agent.Host) ([]string, error) {
	return files(h.CNIConf)
}
