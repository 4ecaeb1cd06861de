package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// Limits of the server.
const (
	// maxUDP is the largest datagram that crosses any network whole (DNS flag day).
	maxUDP = 1232
	// tcpIdle ends a connection that asks nothing.
	tcpIdle = 10 * time.Second
	// tcpQueries are answered on one connection at the most.
	tcpQueries = 1000
	// patience bounds the work on one query.
	patience = 4 * time.Second
)

// Server answers queries on the sockets that it is given.
type Server struct {
	resolver *Resolver
	forward  *Forwarder
	log      *slog.Logger
	metrics  *metrics
	callers  Callers
	logs     queryLogs

	settings atomic.Pointer[Settings]

	mu      sync.Mutex
	sockets map[Socket]*dns.Server
}

// Settings are what the agent tells the server beside the records.
type Settings struct {
	// Domains are the cluster's, with a final dot, the first one for PTR answers.
	Domains   []string         `json:"domains"`
	Upstreams []netip.AddrPort `json:"upstreams"`
	// Clients may ask; everybody else gets no answer.
	Clients []netip.Prefix `json:"clients"`
	// Autopath answers the first step of a pod's search with what the last would find.
	Autopath bool `json:"autopath,omitempty"`
	// Search is the search list of the node, which pods have behind the cluster's.
	Search []string `json:"search,omitempty"`
}

// Socket names a listening socket.
type Socket struct {
	Network string         `json:"network"` // "udp" or "tcp"
	Addr    netip.AddrPort `json:"addr"`
}

// metrics carry CoreDNS's names, as dashboards know them.
type metrics struct {
	requests  *prometheus.CounterVec
	responses *prometheus.CounterVec
	duration  prometheus.Histogram
	forwarded prometheus.Counter
	refused   prometheus.Counter
	autopath  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coredns_dns_requests_total", Help: "Queries."}, []string{"proto", "type"}),
		responses: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coredns_dns_responses_total", Help: "Replies by code."}, []string{"rcode"}),
		duration:  prometheus.NewHistogram(prometheus.HistogramOpts{Name: "coredns_dns_request_duration_seconds", Help: "Time per query.", Buckets: prometheus.ExponentialBuckets(0.00001, 4, 10)}),
		forwarded: prometheus.NewCounter(prometheus.CounterOpts{Name: "wayleave_dns_upstream_failures_total", Help: "Tries at an upstream server without an answer."}),
		refused:   prometheus.NewCounter(prometheus.CounterOpts{Name: "wayleave_dns_foreign_clients_total", Help: "Queries from addresses that may not ask."}),
	}
	m.autopath = prometheus.NewCounter(prometheus.CounterOpts{Name: "coredns_autopath_success_total", Help: "Walks through a search list that were answered at their first step."})
	reg.MustRegister(m.autopath, m.requests, m.responses, m.duration, m.forwarded, m.refused)
	return m
}

// NewServer makes a server that answers from zone, with no sockets yet.
func NewServer(zone *Zone, reg prometheus.Registerer, log *slog.Logger) *Server {
	m := newMetrics(reg)
	s := &Server{log: log, metrics: m, sockets: map[Socket]*dns.Server{}}
	s.forward = NewForwarder(m.forwarded.Inc)
	s.resolver = &Resolver{Zone: zone, Forward: s.forward.Forward}
	s.settings.Store(&Settings{})
	reg.MustRegister(&s.callers)
	return s
}

// Configure replaces the settings.
func (s *Server) Configure(c Settings) {
	s.settings.Store(&c)
	s.forward.Set(c.Upstreams)
}

// Know replaces the table of this node's pods.
func (s *Server) Know(callers map[netip.Addr]Caller) { s.callers.Set(callers) }

// Sockets are those that are open now.
func (s *Server) Sockets() []Socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Socket
	for k := range s.sockets {
		out = append(out, k)
	}
	return out
}

// Listen takes over a socket: exactly one of l and p is set. A socket of that
// name that is open already is replaced.
func (s *Server) Listen(k Socket, l net.Listener, p net.PacketConn) {
	d := &dns.Server{
		Listener: l, PacketConn: p, Handler: dns.HandlerFunc(s.serve), UDPSize: 4096,
		ReadTimeout: tcpIdle, WriteTimeout: tcpIdle, MaxTCPQueries: tcpQueries,
		IdleTimeout: func() time.Duration { return tcpIdle },
	}
	s.mu.Lock()
	old := s.sockets[k]
	s.sockets[k] = d
	s.mu.Unlock()
	if old != nil {
		s.stop(k, old)
	}
	go func() {
		if err := d.ActivateAndServe(); err != nil {
			s.log.Error("a socket ended", "socket", k, "err", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.sockets[k] == d {
			delete(s.sockets, k)
		}
	}()
}

// Keep closes every socket that is not in the list.
func (s *Server) Keep(list []Socket) {
	wanted := map[Socket]bool{}
	for _, k := range list {
		wanted[k] = true
	}
	s.mu.Lock()
	gone := map[Socket]*dns.Server{}
	for k, d := range s.sockets {
		if !wanted[k] {
			gone[k] = d
			delete(s.sockets, k)
		}
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for k, d := range gone {
		wg.Go(func() { s.stop(k, d) })
	}
	wg.Wait()
}

// stop answers what has arrived, and then closes the socket.
func (s *Server) stop(k Socket, d *dns.Server) {
	if c, ok := d.PacketConn.(*net.UDPConn); ok {
		if err := drain(c); err != nil {
			s.log.Warn("queries that had arrived may be lost", "socket", k, "err", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := d.ShutdownContext(ctx); err != nil {
		s.log.Warn("a socket would not close", "socket", k, "err", err)
	}
}

// clientOf is the address of a client, or the zero Addr.
func clientOf(from net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(from.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// allowed says whether a client may ask.
func (s *Server) allowed(a netip.Addr) bool {
	for _, p := range s.settings.Load().Clients {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// resolve makes the reply to a query of the caller.
func (s *Server) resolve(ctx context.Context, q *dns.Msg, from Caller) *dns.Msg {
	settings := s.settings.Load()
	r := *s.resolver
	r.Domains = settings.Domains
	m := r.Resolve(ctx, q)
	if settings.Autopath && r.Autopath(ctx, q, m, from, settings.Search) {
		s.metrics.autopath.Inc()
	}
	return m
}

func (s *Server) serve(w dns.ResponseWriter, q *dns.Msg) {
	start := time.Now()
	client := clientOf(w.RemoteAddr())
	if !s.allowed(client) {
		s.metrics.refused.Inc()
		if w.RemoteAddr().Network() == "tcp" {
			w.Close()
		}
		return
	}
	qtype := "other"
	if len(q.Question) == 1 {
		if name, ok := dns.TypeToString[q.Question[0].Qtype]; ok {
			qtype = name
		}
	}
	s.metrics.requests.WithLabelValues(w.RemoteAddr().Network(), qtype).Inc()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var from Caller // the zero one when it is no pod of this node
	if c := s.callers.at(client); c != nil {
		c.queries.Add(1)
		from = c.Caller
	}
	var logs []*queryLog
	if len(q.Question) == 1 {
		logs = s.logs.of(from, q.Question[0].Name)
	}
	var sources *trace
	if len(logs) > 0 {
		ctx, sources = traced(ctx)
	}
	m := s.resolve(ctx, q, from)
	if len(logs) > 0 {
		put(logs, logLine(start, client, from, w.RemoteAddr().Network(), m, sources.String()))
	}
	if w.RemoteAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
		}
		m.Truncate(size)
	}
	m.Compress = true
	if err := w.WriteMsg(m); err != nil {
		s.log.Debug("could not answer", "client", w.RemoteAddr().String(), "err", err)
	}
	s.metrics.responses.WithLabelValues(dns.RcodeToString[m.Rcode]).Inc()
	s.metrics.duration.Observe(time.Since(start).Seconds())
}
