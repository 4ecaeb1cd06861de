package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"wayleave.dev/config"
	"wayleave.dev/internal/admission"
	"wayleave.dev/loadbalancer"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/statusserver"
)

// The bounds of the agent's unix sockets, which are for the kubelet's probes and for `wayleave status`: the port of
// another container of the pod must not take the agent's memory.
const (
	maxUnixConns   = 32
	maxUnixHeader  = 4 << 10
	unixTimeout    = 5 * time.Second
	unixIdle       = time.Second
	unixWriteBound = 30 * time.Second // a status of 10,000 Services takes seconds to render
)

// serve runs an HTTP server on a unix socket until ctx ends.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: unixTimeout, ReadTimeout: unixTimeout, IdleTimeout: unixIdle,
		WriteTimeout: unixWriteBound, MaxHeaderBytes: maxUnixHeader}
	l = admission.New(l, admission.Limits{Total: maxUnixConns, PerSource: maxUnixConns})
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}

// serveHealth answers the kubelet's probes of this pod.
func (a *agent) serveHealth(ctx context.Context) error {
	l, err := listenUnix(healthSocket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := a.ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return serve(ctx, l, mux)
}

// ready says why this agent is not: a standby is when it could take over at once,
// an owner when all features have synced.
func (a *agent) ready() error {
	if all := a.needed(); a.store.Synced()&all != all {
		return errors.New("not all objects of the API server have been read")
	}
	if !a.owner.Load() {
		if a.cfg.LoadBalancer.Enabled {
			return a.announcer.Load().prepared(time.Now())
		}
		return nil
	}
	for name, s := range a.states() {
		if !s.Synced {
			if s.Error != "" {
				return fmt.Errorf("%s: %s", name, s.Error)
			}
			return fmt.Errorf("%s has not synced yet", name)
		}
	}
	return nil
}

func (a *agent) states() map[string]reconcile.State {
	a.mu.Lock()
	healths := maps.Clone(a.healths)
	a.mu.Unlock()
	out := map[string]reconcile.State{}
	for name, h := range healths {
		out[name] = h.State()
	}
	return out
}

// serveStatus answers `wayleave status` on the node.
func (a *agent) serveStatus(ctx context.Context) error {
	l, err := listenUnix(agentSocket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(a.report()); err != nil {
			a.log.Debug("status", "err", err)
		}
	})
	return serve(ctx, l, mux)
}

func (a *agent) report() report {
	snap := a.store.Snapshot()
	r := report{
		Version: version, Node: a.node, Role: "standby", Mode: modeOf(a.cfg), Routing: a.cfg.Routing,
		Encryption: a.cfg.Encryption,
		Kernel:     a.features.Words(), APIServer: a.client.Server + " (" + a.client.From + ")",
		Objects: map[string]int{}, Features: a.states(), Off: off(a.cfg), Facts: map[string][]string{},
	}
	if a.owner.Load() {
		r.Role = "owner"
	}
	for _, k := range []model.Kind{model.ServiceKind, model.EndpointSliceKind, model.PodKind, model.NodeKind,
		model.NamespaceKind, model.NetworkPolicyKind, model.IngressKind} {
		r.Objects[k.String()] = snap.Count(k)
	}
	if n := a.network.Load(); n != nil {
		r.Facts["podnetwork"] = n.Facts()
	}
	if a.cfg.DNS.Enabled {
		r.Facts["dns"] = []string{fmt.Sprintf(
			"%d dns processes connected, VIPs %v, domain %s, %d addresses of pods known", a.feed.Servers(),
			a.cfg.ClusterDNS, a.cfg.ClusterDomain, a.feed.Callers()),
			fmt.Sprintf("upstreams set %v (none: the node's), %d stub domains, %d hosts, cache of %d MiB",
				a.cfg.DNS.Upstreams, len(a.cfg.DNS.StubDomains), len(a.cfg.DNS.Hosts), a.cfg.DNS.CacheMiB)}
		r.Facts["dns"] = append(r.Facts["dns"], lacking(a.feed.Lacks())...)
	}
	if n := a.announcer.Load(); n != nil {
		r.Facts["loadbalancer"] = n.facts(loadbalancer.Count(snap, a.cfg.LoadBalancer.Default))
		r.VIPs = n.look(time.Now())
	}
	if p := a.policies.Load(); p != nil {
		r.Facts["networkpolicy"] = p.facts(snap)
		r.Policies = p.look(context.Background(), snap)
	}
	if a.cfg.Ingress.Enabled {
		r.Facts["ingress"] = a.ingress.facts(snap)
	}
	r.Facts["service"] = slices.Clone(a.cfg.Unused)
	a.mu.Lock()
	for feature, line := range a.facts {
		feature, _, _ = strings.Cut(feature, " ")
		if line != "" {
			r.Facts[feature] = append(r.Facts[feature], line)
		}
	}
	a.mu.Unlock()
	r.Wrong, r.Notes = a.wrongs(r.Features), a.notes()
	return r
}

func (a *agent) wrongs(states map[string]reconcile.State) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(states)) {
		if s := states[name]; s.Error != "" {
			out = append(out, name+": "+s.Error)
		} else if !s.Synced {
			out = append(out, name+": has not synced yet")
		}
	}
	a.mu.Lock()
	for _, what := range slices.Sorted(maps.Keys(a.wrong)) {
		out = append(out, what+": "+a.wrong[what])
	}
	a.mu.Unlock()
	for _, p := range a.problems.List() {
		if !p.Note {
			out = append(out, p.Error())
		}
	}
	return out
}

// notes are what has no effect, and is no fault.
func (a *agent) notes() (out []string) {
	for _, p := range a.problems.List() {
		if p.Note {
			out = append(out, p.Error())
		}
	}
	return out
}

// off lists the features that the settings switch off.
func off(c config.Config) (out []string) {
	for name, on := range map[string]bool{"podnetwork": c.PodNetwork.Enabled, "service": c.Service.Enabled,
		"dns":          c.DNS.Enabled,
		"loadbalancer": c.LoadBalancer.Enabled, "networkpolicy": c.NetworkPolicy.Enabled,
		"ingress": c.Ingress.Enabled} {
		if !on {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// servePorts serves what kube-proxy serves: :10256/healthz and /livez for load balancers, :10249 for metrics and the
// mode, by a process without capabilities. A port that somebody else holds is named in status and tried again.
func (a *agent) servePorts(ctx context.Context) error {
	s := &statusserver.Supervisor{Args: []string{"status-server"}, Ports: statusPorts, Render: a.page, Log: a.log,
		Say: func(port string, err error) { a.say("port "+port, err) }}
	return s.Run(ctx)
}

// statusPorts are the ports of kube-proxy. Metrics are for the node itself, as kube-proxy's by default.
var statusPorts = []statusserver.Port{
	{Name: ":10256", Pages: map[string]statusserver.Page{"/healthz": statusserver.Healthz,
		"/livez": statusserver.Livez}},
	{Name: "127.0.0.1:10249", Pages: map[string]statusserver.Page{"/healthz": statusserver.Alive,
		"/metrics": statusserver.Metrics, "/proxyMode": statusserver.ProxyMode}},
}

// page is what the process that serves is told to answer.
func (a *agent) page(name statusserver.Page) statusserver.Answer {
	switch name {
	case statusserver.Healthz:
		return a.healthz()
	case statusserver.Livez:
		return a.livez()
	case statusserver.ProxyMode:
		return statusserver.Text(modeOf(a.cfg))
	case statusserver.Alive:
		return statusserver.Text("ok")
	}
	return a.metrics.page()
}

// proxyState says what is wrong with the service proxy, nil where it keeps up.
func (a *agent) proxyState() error {
	s, on := a.states()["service"]
	if !on || s.Synced && (s.Error == "" || s.Partial) {
		return nil
	}
	return fmt.Errorf("the service proxy is behind: %s", s.Error)
}

// proxyHealth is what kube-proxy v1.36 answers.
type proxyHealth struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyHealth `json:"status,omitempty"`
}

type familyHealth struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// healthz is for load balancers: a node that is being deleted gets nothing more.
// livez is for who would restart us, and does not look at that.
func (a *agent) healthz() statusserver.Answer {
	eligible := true
	if n, ok := a.store.Snapshot().Node(a.node); ok {
		eligible = !n.Leaving
	}
	return a.sayHealth(eligible, &eligible)
}

func (a *agent) livez() statusserver.Answer { return a.sayHealth(true, nil) }

func (a *agent) sayHealth(eligible bool, shown *bool) statusserver.Answer {
	now := time.Now()
	h := proxyHealth{LastUpdated: now, CurrentTime: now, NodeEligible: shown, Healthy: a.proxyState() == nil}
	if !h.Healthy {
		h.LastUpdated = a.states()["service"].LastApplied
	}
	family := familyHealth{h.LastUpdated, h.Healthy} // both are one transaction
	h.Status = map[string]familyHealth{"IPv4": family, "IPv6": family}
	out := statusserver.Answer{Status: http.StatusOK, ContentType: "application/json"}
	if !h.Healthy || !eligible {
		out.Status = http.StatusServiceUnavailable
	}
	body, err := json.Marshal(h)
	if err != nil {
		return statusserver.Answer{Status: http.StatusInternalServerError, Body: []byte(err.Error())}
	}
	out.Body = append(body, '\n')
	return out
}
