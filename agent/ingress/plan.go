package ingress

import (
	"context"
	"maps"
	"slices"

	"wayleave.dev/agent"
	"wayleave.dev/ingress"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// names has the Secrets and ConfigMaps watched that Ingresses of ours name, and no others.
func (f *Feature) names(ctx context.Context) error {
	return agent.All(ctx, secretLoop(f.node.Core, f.settings, f.secrets).Run,
		namedLoop(f.node.Core, "ingress configmaps", f.settings, ingress.ConfigMapsOf, model.Name{}, f.configMaps).Run)
}

func secretLoop(c *agent.Core, s ingress.Settings,
	target reconcile.Target[model.Name, []model.Name]) *reconcile.Loop[model.Name, []model.Name] {
	return namedLoop(c, "ingress secrets", s, ingress.SecretsOf, s.DefaultCertificate, target)
}

// namedLoop plans the names of objects: those that Ingresses of ours name, and one of the settings, if there is one.
func namedLoop(c *agent.Core, name string, s ingress.Settings, of func(*model.Ingress) []model.Name,
	always model.Name, target reconcile.Target[model.Name, []model.Name]) *reconcile.Loop[model.Name, []model.Name] {
	first := true
	return &reconcile.Loop[model.Name, []model.Name]{
		Name: name, Store: c.Store, Kinds: model.IngressKind | model.IngressClassKind, Target: target,
		Health: c.Health(name), Log: c.Log,
		Planner: reconcile.PlannerOf(func(snap model.Snapshot, ch model.Changes) []model.Name {
			keys := slices.Collect(maps.Keys(ch.Of(model.IngressKind)))
			if ch.Any(model.IngressClassKind) {
				keys = keys[:0]
				for n := range ch.Of(model.IngressKind) {
					keys = append(keys, n) // those that are gone, too
				}
				for i := range snap.Ingresses() {
					keys = append(keys, i.Name)
				}
			}
			if first {
				first = false
				keys = append(keys, model.Name{}) // the settings
			}
			return keys
		}, func(snap model.Snapshot, n model.Name) ([]model.Name, bool, []model.Problem) {
			if n == (model.Name{}) {
				return []model.Name{always}, always != model.Name{}, nil
			}
			i, ok := snap.Ingress(n)
			if !ok || !s.Ours(snap, i) {
				return nil, false, nil
			}
			names := of(i)
			return names, len(names) > 0, nil
		}),
		Equal: slices.Equal[[]model.Name],
	}
}

// plan plans hosts, backends and certificates.
func (f *Feature) plan(ctx context.Context) error {
	planner := ingress.NewPlanner(f.settings)
	planner.Waits = true // for f.secrets and f.configMaps
	loop := &reconcile.Loop[ingress.Key, ingress.Plan]{
		Name: "ingress", Store: f.node.Store, Kinds: ingress.Kinds, Planner: planner,
		Equal:  ingress.Equal,
		Target: ingress.Target{Hosts: f.feed.Hosts(), Backends: f.feed.Backends(), Certificates: f.feed.Certificates()},
		Wake:   planner.Wake(), Health: f.node.Health(f.Name()), Log: f.node.Log,
		Report: f.node.ReportTo("ingress"),
	}
	return agent.All(ctx, loop.Run, planner.Run)
}
