package ingress

import (
	"context"
	"fmt"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/ingress"
	"wayleave.dev/model"
	"wayleave.dev/writeback"
)

// WriterKinds implements agent.Writer.
func (f *Feature) WriterKinds(config.Config) agent.Kinds {
	return agent.Kinds{Required: model.IngressKind | model.IngressClassKind}
}

// Write implements agent.Writer: it writes what belongs to Ingress, and reports what is wrong with Ingresses.
func (f *Feature) Write(c *agent.Cluster) []agent.Part {
	return []agent.Part{{Name: f.Name(), Run: func(ctx context.Context) error {
		s := writerSettings(ctx, c)
		in := &writeback.Ingresses{Client: c.Client.Interface, Store: c.Store, Settings: s,
			Selector: servingPods(c.Config), HTTP: portHTTP, HTTPS: portHTTPS,
			NodeAddresses: c.Config.Ingress.HostPorts, NodeSelector: c.Config.Ingress.NodeSelector,
			Log: c.Log, SetCondition: func(err error) { c.SetCondition("ingress", err) },
			Beside: func(other string) { c.Problems.Set("ingress", "default class", besideClass(other)) }}
		return agent.All(ctx, in.Run, func(ctx context.Context) error { return judge(ctx, c, s) })
	}}}
}

// besideClass says why the class wayleave is not the default.
func besideClass(other string) []model.Problem {
	return []model.Problem{{Kind: "IngressClass", Object: model.Name{Name: ingress.ClassName}, Note: true,
		Event: "AnotherIngressController", Reason: fmt.Sprintf("not made the default class, because the class %s of "+
			"another controller exists; to have Wayleave serve Ingresses without a class: kubectl annotate "+
			"ingressclass wayleave ingressclass.kubernetes.io/is-default-class=true", other)}}
}

// judge reports what is wrong with Ingresses, but for their Secrets and ConfigMaps: the writer reads none, and nodes
// that do report those problems.
func judge(ctx context.Context, c *agent.Cluster, s ingress.Settings) error {
	c.Store.MarkSynced(ingress.NamedKinds)
	planner := ingress.NewPlanner(s)
	find := func(snap model.Snapshot, k ingress.Key) []model.Problem {
		_, _, problems := planner.Plan(snap, k)
		good := problems[:0:0]
		for _, q := range problems {
			if !writeback.NamesObject(q.Field) {
				good = append(good, q)
			}
		}
		return good
	}
	check := agent.Check(c, "ingress", ingress.Kinds, planner.Keys, find, planner.Wake())
	return agent.All(ctx, check.Run, planner.Run)
}

// reporters is how many nodes report problems of Secrets and ConfigMaps that Ingresses name: all nodes find the same.
const reporters = 2

// Reports implements agent.NodeReporter.
func (f *Feature) Reports(n *agent.Node, _ model.Problem) bool {
	count := 0
	for node := range n.Store.Snapshot().Nodes() { // in order of names
		if node.Ready && servesOn(n.Config, node) {
			if node.Name == n.Name {
				return true
			}
			if count++; count == reporters {
				break
			}
		}
	}
	return false
}

// Accepts implements agent.NodeReporter: the node serves Ingresses, and the Ingress is ours.
func (f *Feature) Accepts(c *agent.Cluster, node string, p model.Problem) bool {
	snap := c.Store.Snapshot()
	n, ok := snap.Node(node)
	i, there := snap.Ingress(p.Object)
	return ok && there && servesOn(c.Config, n) && settings(c.Config).Ours(snap, i)
}

// servingPods selects the pods whose proxies serve Ingresses. With a node selector they are
// those of the DaemonSet wayleave-ingress.
func servingPods(cfg config.Config) map[string]string {
	pods := agent.PodSelector()
	if len(cfg.Ingress.NodeSelector) > 0 {
		pods["app.kubernetes.io/component"] = "ingress"
	}
	return pods
}

// domainWithin is how long the writer waits for a first report of the cluster's domain.
const domainWithin = 10 * time.Second

// writerSettings are those by which Ingresses are planned; the cluster's domain is that of the
// setting, else what most nodes report, else cluster.local.
func writerSettings(ctx context.Context, c *agent.Cluster) ingress.Settings {
	s := settings(c.Config)
	for end := time.Now().Add(domainWithin); s.ClusterDomain == "" && ctx.Err() == nil && time.Now().Before(end); {
		if told, known, _ := c.Reports.DNS(); known {
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
