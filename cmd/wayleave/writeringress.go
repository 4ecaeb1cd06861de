package main

import (
	"context"
	"time"

	"wayleave.dev/ingress"
	"wayleave.dev/model"
	"wayleave.dev/writeback"
)

// servingPods selects the pods whose proxies serve Ingresses. With a node selector they are
// those of the DaemonSet wayleave-ingress.
func (w *writer) servingPods() map[string]string {
	pods := agentPods()
	if len(w.cfg.Ingress.NodeSelector) > 0 {
		pods["app.kubernetes.io/component"] = "ingress"
	}
	return pods
}

// domainWithin is how long the writer waits for a first report of the cluster's domain.
const domainWithin = 10 * time.Second

// settings are those by which Ingresses are planned; the cluster's domain is that of the
// setting, else what most nodes report, else cluster.local.
func (w *writer) settings(ctx context.Context) ingress.Settings {
	s := ingressSettings(w.cfg)
	for end := time.Now().Add(domainWithin); s.ClusterDomain == "" && ctx.Err() == nil && time.Now().Before(end); {
		if told, known, _ := w.reports.DNS(); known {
			s.ClusterDomain = told.Domain
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return s
}

// ingress writes what belongs to Ingress, and reports what is wrong with Ingresses.
func (w *writer) ingress(ctx context.Context) error {
	s := w.settings(ctx)
	in := &writeback.Ingresses{Client: w.client.Interface, Store: w.store, Settings: s, Selector: w.servingPods(),
		HTTP: proxyHTTP, HTTPS: proxyHTTPS, NodeAddresses: w.cfg.Ingress.HostPorts,
		NodeSelector: w.cfg.Ingress.NodeSelector,
		Log:          w.log, SetCondition: func(err error) { w.say("ingress", err) }}
	return all(ctx, in.Run, func(ctx context.Context) error { return w.judgeIngresses(ctx, s) })
}

// judgeIngresses reports what is wrong with Ingresses, but for their Secrets: the writer
// reads none, and nodes that do report those problems.
func (w *writer) judgeIngresses(ctx context.Context, s ingress.Settings) error {
	defer w.problems.Clear("ingress")
	w.store.MarkSynced(model.SecretKind)
	planner := ingress.NewPlanner(s)
	loop := check(w, "ingress", ingress.Kinds, planner.Keys, func(snap model.Snapshot, k ingress.Key) []model.Problem {
		_, _, problems := planner.Plan(snap, k)
		good := problems[:0:0]
		for _, q := range problems {
			if !writeback.NamesSecret(q.Field) {
				good = append(good, q)
			}
		}
		return good
	})
	loop.Wake = planner.Wake()
	return all(ctx, loop.Run, planner.Run)
}
