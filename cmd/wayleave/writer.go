package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/internal/memlimit"
	"wayleave.dev/loadbalancer"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/writeback"
)

// writerSocket serves the probes and the status of this pod's writer.
const writerSocket = "/pod/writer.sock"

func writerCommand() *cobra.Command {
	var settings string
	c := &cobra.Command{
		Use:   "writer",
		Short: "Write cluster-wide objects (what the Deployment wayleave-writer starts)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := memlimit.Set(7, 8); err != nil {
				fmt.Fprintln(os.Stderr, "going on without:", err)
			}
			return runWriter(cmd.Context(), settings)
		},
	}
	c.Flags().StringVar(&settings, "config", configDir, "the settings: a file, or the folder of a mounted ConfigMap")
	return c
}

// writer is one replica of the Deployment wayleave-writer. All replicas watch the API; the
// elected one writes cluster-wide objects and Events. It changes nothing on its node, opens
// no port and has no file but the socket of its probes.
type writer struct {
	// name is the pod's, unique among replicas.
	name     string
	cfg      config.Config
	log      *slog.Logger
	store    *model.Store
	problems *writeback.Problems
	client   *kubesource.Client
	reports  *writeback.NodeReports
	elected  atomic.Bool

	mu    sync.Mutex
	wrong map[string]string
}

func newWriter(settings string) (*writer, error) {
	cfg, err := config.Read(settings)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", settings, err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	w := &writer{name: os.Getenv("POD_NAME"), cfg: cfg, log: log, problems: writeback.NewProblems(log),
		wrong: map[string]string{}}
	if w.name == "" {
		return nil, errors.New("POD_NAME is not set; the manifest sets it to metadata.name")
	}
	if w.store, err = model.NewStore(); err != nil {
		return nil, err
	}
	w.problems.PoolUID = func(name string) string {
		if p, ok := w.store.Snapshot().AddressPool(name); ok {
			return p.UID
		}
		return ""
	}
	// The node's file system is not mounted here: the address is that of the setting
	// apiServer or of the environment.
	if w.client, err = kubesource.NewClient(cfg.APIServer, kubesource.Host{}); err != nil {
		return nil, err
	}
	w.reports = &writeback.NodeReports{
		Client: w.client.Interface, Namespace: writeback.PeersNamespace, Accept: w.accepts, Log: log,
		Problems: func(node string, problems []model.Problem) { w.problems.Set("node", node, problems) }}
	return w, nil
}

func runWriter(ctx context.Context, settings string) error {
	w, err := newWriter(settings)
	if err != nil {
		return err
	}
	defer w.store.Close()
	w.log.Info("starting", "version", version, "writer", w.name, "apiServer", w.client.Server, "from", w.client.From)
	err = all(ctx, w.serveHealth, w.source, w.readReports,
		kubesource.Servers{Endpoints: w.client.Endpoints, Store: w.store}.Run,
		func(ctx context.Context) error {
			w.problems.Run(ctx, w.client.Interface, w.name, w.elected.Load)
			return ctx.Err()
		}, w.elect)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// needed are the kinds that the writer decides from. AddressPools are not among them: the
// elected writer creates that kind.
func (w *writer) needed() model.Kind {
	kinds := service.Kinds | model.NamespaceKind
	if w.cfg.NetworkPolicy.Enabled {
		kinds |= model.NetworkPolicyKind | model.PodKind
	}
	if w.cfg.Ingress.Enabled {
		kinds |= model.IngressKind | model.IngressClassKind
	}
	return kinds
}

func (w *writer) source(ctx context.Context) error {
	s := &kubesource.Source{
		Client: w.client.Interface, Store: w.store, Log: w.log,
		Policies: w.cfg.NetworkPolicy.Enabled, Ingresses: w.cfg.Ingress.Enabled,
		Report: func(kind string, n model.Name, problems []model.Problem) {
			if kind == model.IngressKind.String() {
				return // told by the planner, of those that are ours
			}
			w.problems.Set("source", kind+" "+n.String(), problems)
		}}
	if w.cfg.LoadBalancer.Enabled {
		s.Dynamic = w.client.Dynamic
	}
	return s.Run(ctx)
}

// readReports reads what agents report, once the objects they report about are known.
func (w *writer) readReports(ctx context.Context) error {
	if err := w.store.WaitSynced(ctx, w.needed()); err != nil {
		return err
	}
	return w.reports.Run(ctx)
}

// accepts says whether a node may report a problem of an Ingress: it serves Ingresses, and
// the Ingress is ours.
func (w *writer) accepts(node string, q model.Problem) bool {
	snap := w.store.Snapshot()
	n, ok := snap.Node(node)
	i, there := snap.Ingress(q.Object)
	return ok && there && servesIngress(w.cfg, n) && ingressSettings(w.cfg).Ours(snap, i)
}

// elect takes part in the election. A job that fails ends this replica: another follows.
func (w *writer) elect(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := writeback.Elect(ctx, w.client.Interface, writeback.DNSNamespace, w.name, w.log, func(term context.Context) {
		w.elected.Store(true)
		defer w.elected.Store(false)
		w.problems.Again()
		if err := all(term, w.jobs()...); err != nil && term.Err() == nil {
			cancel(fmt.Errorf("writer: %w", err))
		}
	})
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// jobs are what the elected writer does.
func (w *writer) jobs() []func(context.Context) error {
	jobs := []func(context.Context) error{w.judgeServices}
	if w.cfg.DNS.Enabled {
		jobs = append(jobs, w.ensureDNS)
	}
	if w.cfg.LoadBalancer.Enabled {
		jobs = append(jobs, w.balance, w.sealKeys, w.judgeAnnouncements)
	}
	if w.cfg.NetworkPolicy.Enabled {
		jobs = append(jobs, w.judgePolicies)
	}
	if w.cfg.Ingress.Enabled {
		jobs = append(jobs, w.ingress)
	}
	return jobs
}

// balance gives Services of type LoadBalancer their addresses.
func (w *writer) balance(ctx context.Context) error {
	b := &writeback.Balancer{
		Client: w.client.Interface, Dynamic: w.client.Dynamic, Store: w.store,
		Default: w.cfg.LoadBalancer.Default, Log: w.log,
		Report: func(key string, problems []model.Problem) {
			if key == "Service "+writeback.DNSNamespace+"/"+writeback.IngressService {
				for i := range problems { // without a pool the nodes' own addresses are used
					problems[i].Note = true
				}
			}
			w.problems.Set("loadbalancer", key, problems)
		},
		SetCondition: func(err error) { w.say("loadbalancer", err) }}
	return b.Run(ctx)
}

// sealKeys gives the nodes the key of heartbeats.
func (w *writer) sealKeys(ctx context.Context) error {
	s := &writeback.KeySealer{Client: w.client.Interface, Namespace: writeback.PeersNamespace, Log: w.log}
	return s.Run(ctx)
}

// ensureDNS keeps the Service kube-dns as it should be.
func (w *writer) ensureDNS(ctx context.Context) error {
	for wait := time.Second; ctx.Err() == nil; {
		err := w.ensureDNSOnce(ctx)
		if ctx.Err() != nil {
			break
		}
		w.say("kube-dns", err)
		if err == nil {
			wait = 30 * time.Second
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, 30*time.Second)
	}
	w.say("kube-dns", nil)
	return ctx.Err()
}

func (w *writer) ensureDNSOnce(ctx context.Context) error {
	vips, _ := splitDNS(w.cfg.ClusterDNS)
	want := writeback.DNSService{VIPs: vips, TargetPort: dns.NodePort, Selector: agentPods()}
	if len(want.VIPs) == 0 {
		if err := w.store.WaitSynced(ctx, model.ServiceKind); err != nil {
			return err
		}
		told, known, _ := w.reports.DNS()
		told.VIPs, _ = splitDNS(told.VIPs) // agents of earlier versions report all
		if _, exists := w.store.Snapshot().Service(dnsService()); !known && !exists {
			return errors.New(
				"no agent has reported yet which DNS server its kubelet gives to pods (see the setting clusterDNS)")
		}
		want.VIPs = told.VIPs
	}
	return want.Ensure(ctx, w.client.Interface)
}

// agentPods selects the pods of all agents, whichever DaemonSet they are of.
func agentPods() map[string]string { return map[string]string{"app.kubernetes.io/name": "wayleave"} }

// check reports the problems of keys, as a feature finds them when it plans.
func check[K comparable](w *writer, name string, kinds model.Kind, keys func(model.Snapshot, model.Changes) []K,
	find func(model.Snapshot, K) []model.Problem,
) *reconcile.Loop[K, struct{}] {
	return &reconcile.Loop[K, struct{}]{
		Name: name, Store: w.store, Kinds: kinds,
		Equal: func(a, b struct{}) bool { return true }, Target: nothing[K]{},
		Planner: reconcile.PlannerOf(keys, func(s model.Snapshot, k K) (struct{}, bool, []model.Problem) {
			return struct{}{}, false, find(s, k)
		}),
		Health: reconcile.NewHealth(func(bool, time.Duration) {}, func(string) {}), Log: w.log,
		Report: func(key string, problems []model.Problem) { w.problems.Set(name, key, problems) },
	}
}

// nothing is a target of which nothing is wanted.
type nothing[K comparable] struct{}

// Sync implements reconcile.Target.
func (nothing[K]) Sync(context.Context, map[K]struct{}) error { return nil }

// Apply implements reconcile.Target.
func (nothing[K]) Apply(context.Context, map[K]struct{}, []K) error { return nil }

// judgeServices reports what is wrong with Services.
func (w *writer) judgeServices(ctx context.Context) error {
	defer w.problems.Clear("service")
	if !w.cfg.Service.Enabled {
		<-ctx.Done()
		return ctx.Err()
	}
	planner := &service.Planner{Options: planOptions("", w.cfg)}
	find := func(s model.Snapshot, k model.Name) []model.Problem {
		_, _, problems := planner.Plan(s, k)
		return problems
	}
	return check(w, "service", service.Kinds, planner.Keys, find).Run(ctx)
}

// judgeAnnouncements reports what is wrong with the addresses of load balancers.
func (w *writer) judgeAnnouncements(ctx context.Context) error {
	defer w.problems.Clear("announce")
	plan := loadbalancer.Plan(w.cfg.LoadBalancer.Default)
	find := func(s model.Snapshot, k model.Name) []model.Problem {
		_, _, problems := plan(s, k)
		return problems
	}
	return check(w, "announce", loadbalancer.Kinds, loadbalancer.Keys, find).Run(ctx)
}

// say keeps what is wrong, for status; nil takes it back.
func (w *writer) say(what string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		delete(w.wrong, what)
		return
	}
	if w.wrong[what] != err.Error() {
		w.log.Warn(what, "err", err)
	}
	w.wrong[what] = err.Error()
}

// serveHealth answers the kubelet's probes and `wayleave status --writer`.
func (w *writer) serveHealth(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(writerSocket), 0o755); err != nil {
		return err
	}
	l, err := listenUnix(writerSocket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintln(rw, "ok") })
	mux.HandleFunc("/readyz", func(rw http.ResponseWriter, _ *http.Request) {
		if all := w.needed(); w.store.Synced()&all != all {
			http.Error(rw, "not all objects of the API server have been read", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(rw, "ok")
	})
	mux.HandleFunc("/status", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(rw).Encode(w.report()); err != nil {
			w.log.Debug("status", "err", err)
		}
	})
	return serve(ctx, l, mux)
}

func (w *writer) report() report {
	snap := w.store.Snapshot()
	r := report{
		Version: version, Node: w.name, Role: "writer, standby",
		Mode: modeOf(w.cfg), Routing: w.cfg.Routing, Encryption: w.cfg.Encryption,
		APIServer: w.client.Server + " (" + w.client.From + ")", Objects: map[string]int{}, Off: off(w.cfg)}
	if w.elected.Load() {
		r.Role = "writer, elected"
	}
	for _, k := range []model.Kind{model.ServiceKind, model.EndpointSliceKind, model.NodeKind, model.NamespaceKind,
		model.NetworkPolicyKind, model.IngressKind} {
		r.Objects[k.String()] = snap.Count(k)
	}
	w.mu.Lock()
	for _, what := range slices.Sorted(maps.Keys(w.wrong)) {
		r.Wrong = append(r.Wrong, what+": "+w.wrong[what])
	}
	w.mu.Unlock()
	for _, p := range w.problems.List() {
		if p.Note {
			r.Notes = append(r.Notes, p.Error())
		} else {
			r.Wrong = append(r.Wrong, p.Error())
		}
	}
	return r
}
