// Package process runs the proxy as a process of its own: it follows the agent, serves, and reports its state.
//
// Invariants:
//   - Nothing is written to disk: all state comes from an agent, and is kept when that
//     disconnects.
//   - An update takes effect at once, each part before the parts that need it.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"wayleave.dev/internal/handoff"
	"wayleave.dev/internal/logging"
	"wayleave.dev/internal/scrape"
	"wayleave.dev/proxy"
	"wayleave.dev/proxy/frames"
	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/reach"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/server"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

// Config is the configuration of the process.
type Config struct {
	// Socket is the agent's.
	Socket string
	// HealthSocket serves /readyz, /livez and /metrics.
	HealthSocket string
	// MetricsSocket is the agent's, for the metrics; empty for none. Version is Wayleave's.
	MetricsSocket, Version string
	// AccessLog gets a line of JSON for each request if the settings enable it.
	AccessLog io.Writer
	Log       *slog.Logger
	// Logs are the settings of Log, which the agent tells; nil keeps them.
	Logs *logging.Log
}

// Defaults of settings that are zero. With this number of connections, each with its buffers and TLS state, the process
// stays within its 512 MiB.
const (
	defaultDrain     = 30 * time.Second
	defaultConns     = 8192
	defaultPerClient = 1024
	defaultConnect   = 5 * time.Second
	defaultTimeout   = 60 * time.Second
	defaultTries     = 3
	// idleDrain is how long idle connections are still read at the end.
	idleDrain = 2 * time.Second
)

// state is the state of the running process.
type state struct {
	Config
	proxy     *proxy.Proxy
	server    *server.Server
	certs     *server.Certificates
	upstreams *upstream.Set
	source    *source
	access    *accessLog
	metrics   *metrics
	hosts     map[string]*schema.Host
	logs      logging.Source

	mu sync.Mutex
	// backends are the known keys; those that are being removed have a timer.
	backends map[string]*time.Timer

	configured, known bool
	drain             time.Duration
	ready             chan struct{}
	// idle means that no socket is requested: Ingress is disabled.
	idle bool
}

// Run serves until ctx ends, then finishes open requests within the time of the settings.
func Run(ctx context.Context, c Config) error {
	reg := prometheus.NewRegistry()
	s, err := newState(c, reg)
	if err != nil {
		return err
	}
	over := make(chan struct{})
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		s.access.run(over)
	}()
	defer func() {
		close(over)
		<-logged
	}()
	health, err := s.health(reg)
	if err != nil {
		return err
	}
	defer health.Close()
	if c.MetricsSocket != "" {
		go scrape.Serve(ctx, c.MetricsSocket, reg)
	}
	go s.upstreams.Run(ctx)
	client := handoff.Client[schema.Socket, frames.Update, frames.Report]{
		Protocol: frames.Handoff(), Socket: c.Socket, Hello: s.hello, Take: s.take, Report: s.report,
		Same: func(a, b frames.Report) bool { return maps.Equal(a.Certificates, b.Certificates) },
		Lost: func(err error) { c.Log.Warn("no agent; continuing with the last configuration", "err", err) },
	}
	err = client.Run(ctx)
	s.end()
	return err
}

func newState(c Config, reg *prometheus.Registry) (*state, error) {
	certs, err := server.NewCertificates()
	if err != nil {
		return nil, err
	}
	source := &source{}
	endpoints := upstream.Defaults()
	endpoints.Dial, endpoints.Keys = source.dial, certs
	s := &state{Config: c, certs: certs, source: source, upstreams: upstream.NewSet(endpoints),
		access: newAccessLog(c.AccessLog), metrics: newMetrics(reg, c.Version),
		hosts: map[string]*schema.Host{}, backends: map[string]*time.Timer{}, drain: defaultDrain,
		ready: make(chan struct{}), logs: logging.Source{Log: c.Logs}}
	s.proxy = &proxy.Proxy{Upstreams: s.upstreams, Timeouts: proxy.Timeouts{Connect: defaultConnect,
		Send: defaultTimeout, Read: defaultTimeout},
		Tries: defaultTries, Observe: s.metrics.observer(s.access), Log: c.Log, Keys: certs}
	s.proxy.Asking = proxy.Asking{Dial: source.ask, Own: func(a netip.AddrPort) bool { return s.server.Serves(a) }}
	s.server = server.New(server.Options{Certificates: certs, Handle: s.proxy.Handle, Pass: s.proxy.Pass,
		HTTP1: h1.DefaultLimits(), Refused: s.metrics.refuse, Log: c.Log})
	s.metrics.proxy, s.metrics.server, s.metrics.pairs, s.metrics.log = s.proxy, s.server, certs, s.access
	return s, nil
}

// end accepts no more connections, and waits for the open ones.
func (s *state) end() {
	s.Log.Info("draining", "connections", s.server.Conns(), "for", s.drain)
	ctx, cancel := context.WithTimeout(context.Background(), s.drain)
	defer cancel()
	s.server.Drain(ctx, min(idleDrain, s.drain/2))
}

// hello is the state that the proxy has from an earlier agent: its sockets.
func (s *state) hello() (handoff.Hello[schema.Socket], []*os.File) {
	list, files := s.server.Sockets()
	return handoff.Hello[schema.Socket]{Holds: list}, files
}

// take applies an update.
func (s *state) take(u frames.Update, files []*os.File) {
	s.metrics.updates.Inc()
	if u.Settings != nil {
		s.configure(u.Settings)
	}
	s.set(&u)
	s.swap(&u)
	s.drop(&u)
	if u.Listen != nil {
		s.listen(u.Listen, files)
	}
	s.isReady()
}

// report lists faults in what the agent sent.
func (s *state) report() frames.Report { return frames.Report{Certificates: s.certs.Problems()} }

// leaveAfter is how long a backend stays that no host refers to any more: a request may have found its route before,
// and still be waiting for auth-url.
const leaveAfter = 10 * time.Second

// set applies the objects that hosts refer to.
func (s *state) set(u *frames.Update) {
	if d := u.Backends; d != nil && len(d.Set) > 0 {
		s.mu.Lock()
		some := make(map[string]*schema.Backend, len(d.Set))
		for k, b := range d.Set {
			if t := s.backends[k]; t != nil {
				t.Stop()
			}
			some[k], s.backends[k] = &b, nil
		}
		s.upstreams.Change(some)
		s.mu.Unlock()
	}
	if d := u.Certificates; d != nil && len(d.Set) > 0 {
		s.certs.Set(d.Set)
	}
}

// swap applies the hosts of an update, all at once.
func (s *state) swap(u *frames.Update) {
	d := u.Hosts
	if d == nil {
		return
	}
	next := s.hosts
	if d.Whole {
		next = make(map[string]*schema.Host, len(d.Set))
	}
	for k, h := range d.Set {
		next[k] = &h
	}
	for _, k := range d.Deleted {
		delete(next, k)
	}
	s.hosts, s.known = next, true
	t := table.Make(s.proxy.Table(), next)
	s.certs.SetTable(t)
	s.proxy.SetTable(t)
}

// drop removes objects that hosts no longer refer to.
func (s *state) drop(u *frames.Update) {
	if d := u.Backends; d != nil {
		s.mu.Lock()
		for _, k := range d.Deleted {
			s.leave(k)
		}
		for k := range s.backends {
			if _, ok := d.Set[k]; d.Whole && !ok {
				s.leave(k)
			}
		}
		s.mu.Unlock()
	}
	if d := u.Certificates; d != nil {
		if d.Whole {
			s.certs.Replace(d.Set)
		}
		s.certs.Delete(d.Deleted)
	}
}

// leave removes a backend after leaveAfter, unless it returns; s.mu is held.
func (s *state) leave(k string) {
	if t, ok := s.backends[k]; !ok || t != nil {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(leaveAfter, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.backends[k] != t {
			return // it returned
		}
		delete(s.backends, k)
		s.upstreams.Change(map[string]*schema.Backend{k: nil})
	})
	s.backends[k] = t
}

// listen opens the passed sockets, and closes those that are no longer requested.
func (s *state) listen(l *frames.Listening, files []*os.File) {
	for i, k := range l.Passed {
		if i >= len(files) {
			break
		}
		if err := s.server.Listen(k, files[i]); err != nil {
			s.Log.Error("a passed socket cannot be used", "socket", k, "err", err)
		}
	}
	s.server.Keep(l.All)
	s.idle = l.Wanted == 0
}

func (s *state) configure(c *schema.Settings) {
	s.configured = true
	s.logs.Set(c.Log)
	s.access.on.Store(c.AccessLog)
	s.source.set(c.Sources)
	s.source.node.Store(c.AskFromNode)
	s.proxy.SetReach(&reach.Policy{Allowed: slices.Clone(c.AskAllowed), Refused: slices.Clone(c.AskRefused),
		Cluster: slices.Clone(c.Cluster)})
	s.upstreams.SetSecret(c.Secret)
	s.certs.SetDefault(c.DefaultCertificate)
	s.drain = or(c.Drain, defaultDrain)
	perClient := or(c.ConnectionsPerClient, defaultPerClient)
	s.server.SetLimits(server.Limits{Connections: or(c.Connections, defaultConns), PerClient: max(perClient, 0),
		ProxyProtocol: c.ProxyProtocol})
	s.server.SetHead(h1.HeadLimits(c.RequestHead))
	s.server.SetName([]byte(c.Server))
	s.upstreams.SetHead(h1.HeadLimits(c.ResponseHead))
	s.upstreams.SetTLS(upstream.TLS(c.EndpointTLS))
	s.proxy.Configure(proxy.Settings{
		ResponseHead: h1.HeadLimits(c.ResponseHead), Server: []byte(c.Server), HideServer: c.HideServer,
		Timeouts: proxy.Timeouts{Connect: or(c.Connect, defaultConnect), Send: or(c.Send, defaultTimeout),
			Read: or(c.Read, defaultTimeout)},
		Tries: or(c.Tries, defaultTries), Trusted: slices.Clone(c.Trusted)})
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// isReady reports whether there are routes and a socket, or no socket is requested.
func (s *state) isReady() {
	if !s.configured || !s.known || s.server.Listening() == 0 && !s.idle {
		return
	}
	select {
	case <-s.ready:
	default:
		close(s.ready)
		s.Log.Info("serving", "hosts", len(s.hosts), "sockets", s.server.Listening())
	}
}

// health serves the probes and the metrics.
func (s *state) health(reg *prometheus.Registry) (*http.Server, error) {
	if err := os.Remove(s.HealthSocket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("health socket: %w", err)
	}
	l, err := net.Listen("unix", s.HealthSocket)
	if err != nil {
		return nil, fmt.Errorf("health socket: %w", err)
	}
	if err := os.Chmod(s.HealthSocket, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("health socket: %w", err), l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-s.ready:
			_, _ = io.WriteString(w, "ok\n")
		default:
			http.Error(w, "no routes or no socket yet", http.StatusServiceUnavailable)
		}
	})
	s.Logs.Serve(mux)
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			s.Log.Error("health socket", "err", err)
		}
	}()
	return srv, nil
}
