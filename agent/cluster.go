package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/writeback"
)

// Cluster is what the cluster-wide writer gives to features. A writer is one replica of the Deployment wayleave-writer.
// All replicas watch the API; the leader writes cluster-wide objects and Events. A writer changes nothing on its node,
// opens no port and has no file but the socket of its probes.
type Cluster struct {
	*Core
	// Name is the pod's, unique among replicas.
	Name string
	// Reports are what agents report.
	Reports *writeback.NodeReports
	leads   atomic.Bool
}

func newCluster(o Options) (*Cluster, error) {
	core, err := newCore(o)
	if err != nil {
		return nil, err
	}
	c := NewCluster(core, os.Getenv("POD_NAME"))
	if c.Name == "" {
		return nil, errors.New("POD_NAME is not set; the manifest sets it to metadata.name")
	}
	c.Problems.UID = func(kind, name string) string { return ownUID(c.Store.Snapshot(), kind, name) }
	// The node's file system is not mounted here: the address is that of the setting
	// apiServer or of the environment.
	if c.Client, err = kubesource.NewClient(c.Config.APIServer, kubesource.Host{}); err != nil {
		return nil, err
	}
	c.Reports.Client, c.Reports.Namespace = c.Client.Interface, writeback.PeersNamespace
	return c, nil
}

// ownUID is the UID of an object of a kind of ours, empty for none.
func ownUID(snap model.Snapshot, kind, name string) string {
	switch kind {
	case model.AddressPoolKind.String():
		if p, ok := snap.AddressPool(name); ok {
			return p.UID
		}
	case model.BGPPeerKind.String():
		if p, ok := snap.BGPPeer(name); ok {
			return p.UID
		}
	case model.BGPConfigurationKind.String():
		for c := range snap.BGPConfigurations() {
			if c.Name == name {
				return c.UID
			}
		}
	case model.BGPAdvertisementKind.String():
		if a, ok := snap.BGPAdvertisement(name); ok {
			return a.UID
		}
	}
	return ""
}

// NewCluster makes a Cluster whose Reports have no client.
func NewCluster(core *Core, name string) *Cluster {
	c := &Cluster{Core: core, Name: name}
	c.Reports = &writeback.NodeReports{Accept: c.Accepts, Log: c.Log,
		Problems: func(node string, problems []model.Problem) { c.Problems.Set("node", node, problems) }}
	return c
}

// RunWriter is one replica of the writer until ctx ends, for which it returns nil.
func RunWriter(ctx context.Context, o Options) error {
	c, err := newCluster(o)
	if err != nil {
		return err
	}
	defer c.Store.Close()
	c.Log.Info("starting", "version", c.Version, "writer", c.Name, "apiServer", c.Client.Server, "from", c.Client.From)
	err = All(ctx, c.serveHealth, c.source("", c.kinds()).Run, c.readReports,
		kubesource.Servers{Endpoints: c.Client.Endpoints, Store: c.Store}.Run,
		func(ctx context.Context) error {
			c.Problems.Run(ctx, c.Client.Interface, c.Name, c.leads.Load)
			return ctx.Err()
		}, c.elect)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// kinds are those that features read in the writer.
func (c *Cluster) kinds() Kinds {
	k := Kinds{Required: baseKinds}
	for _, f := range Enabled[Writer](c.Config, c.Features) {
		k = k.join(f.WriterKinds(c.Config))
	}
	return k
}

// readReports reads what agents report, once the objects they report about are known.
func (c *Cluster) readReports(ctx context.Context) error {
	if err := c.Store.WaitSynced(ctx, c.kinds().Required); err != nil {
		return err
	}
	return c.Reports.Run(ctx)
}

// Accepts says whether a node may report a problem of an object that is not its own.
func (c *Cluster) Accepts(node string, p model.Problem) bool {
	for _, f := range Enabled[NodeReporter](c.Config, c.Features) {
		if f.Accepts(c, node, p) {
			return true
		}
	}
	return false
}

// elect takes part in the leader election. A part that fails ends this replica: another follows.
func (c *Cluster) elect(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := writeback.Elect(ctx, c.Client.Interface, writeback.DNSNamespace, c.Name, c.Log, func(term context.Context) {
		c.leads.Store(true)
		defer c.leads.Store(false)
		c.Problems.Again()
		if err := c.Lead(term); err != nil && term.Err() == nil {
			cancel(fmt.Errorf("writer: %w", err))
		}
	})
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// Lead runs what the leader does, until ctx ends or a part of it does.
func (c *Cluster) Lead(ctx context.Context) error {
	parts := []func(context.Context) error{func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	for _, f := range Enabled[Writer](c.Config, c.Features) {
		for _, p := range f.Write(c) {
			parts = append(parts, func(ctx context.Context) error {
				if err := p.Run(ctx); err != nil {
					return fmt.Errorf("%s: %w", p.Name, err)
				}
				return nil
			})
		}
	}
	return All(ctx, parts...)
}

// serveHealth answers the kubelet's probes and `wayleave status --writer`.
func (c *Cluster) serveHealth(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(WriterSocket), 0o755); err != nil {
		return err
	}
	l, err := listenUnix(WriterSocket)
	if err != nil {
		return err
	}
	mux := probes(func() error {
		if all := c.kinds().Required; c.Store.Synced()&all != all {
			return errNotRead
		}
		return nil
	})
	c.handleStatus(mux, c.Report)
	c.Logs.Serve(mux)
	return serve(ctx, l, mux)
}

// Report is the status of this replica.
func (c *Cluster) Report() Report {
	r := c.Core.report(c.Store.Snapshot(), model.ServiceKind, model.EndpointSliceKind, model.NodeKind,
		model.NamespaceKind, model.NetworkPolicyKind, model.IngressKind)
	r.Node, r.Role = c.Name, "writer, standby"
	if c.leads.Load() {
		r.Role = "writer, elected"
	}
	return r
}

// Check is a part of the leader that reports the problems of keys, as a feature finds them when it plans. They are
// taken back when it ends. wake, which may be nil, has the keys asked for again.
func Check[K comparable](c *Cluster, finder string, kinds model.Kind, keys func(model.Snapshot, model.Changes) []K,
	find func(model.Snapshot, K) []model.Problem, wake <-chan struct{}) Part {
	loop := &reconcile.Loop[K, struct{}]{
		Name: finder, Store: c.Store, Kinds: kinds,
		Equal: func(a, b struct{}) bool { return true }, Target: nothing[K]{}, Wake: wake,
		Planner: reconcile.PlannerOf(keys, func(s model.Snapshot, k K) (struct{}, bool, []model.Problem) {
			return struct{}{}, false, find(s, k)
		}),
		Health: reconcile.NewHealth(func(bool, time.Duration) {}, func(string) {}), Log: c.Log,
		Report: c.ReportTo(finder),
	}
	return Part{"problems of " + finder, func(ctx context.Context) error {
		defer c.Problems.Clear(finder)
		return loop.Run(ctx)
	}}
}

// nothing is a target of which nothing is wanted.
type nothing[K comparable] struct{}

// Sync implements reconcile.Target.
func (nothing[K]) Sync(context.Context, map[K]struct{}) error { return nil }

// Apply implements reconcile.Target.
func (nothing[K]) Apply(context.Context, map[K]struct{}, []K) error { return nil }
