package server

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

	"wayleave.dev/dns/forward"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/dns/zone"
	"wayleave.dev/internal/rlimit"
)

// Server answers queries on the sockets that it is given: names of the zone from prebuilt bytes, in the loop that
// reads; everything else by the Resolver, in a bounded number of goroutines, so that a dead upstream blocks no answer
// about cluster names.
type Server struct {
	resolver *Resolver
	forward  *forward.Forwarder
	log      *slog.Logger
	metrics  *metrics
	callers  Callers
	guests   atomic.Pointer[schema.Clients] // nil until the agent sends them
	logs     queryLogs

	// outside, if set, may answer on the hot path what the zone does not: it appends a reply of at most size bytes to
	// out, and must not block. Set it before the first socket.
	outside func(out, query []byte, size int) ([]byte, bool)
	// caller, if set, is told which client sends a query that the hot path can answer, and whether that name is missing
	// from the domains; true gives the query to the slow path. Set it before the first socket.
	caller func(client netip.Addr, q *wire.Question, domains []wire.Domain, missing bool) bool

	settings atomic.Pointer[schema.Settings]
	compiled atomic.Pointer[compiled]
	// work is what the slow path has in progress.
	work  *shares
	conns *connections
	// unsent counts the bytes of answers that TCP clients have not read.
	unsent atomic.Int64
	// slowTally and tcpTally count what the slow path answers.
	slowTally, tcpTally *tally

	mu      sync.Mutex
	sockets map[schema.Socket]listening
}

// listening is an open socket.
type listening interface {
	// serve answers until stop is called.
	serve() error
	// stop answers the queries that have arrived, and then closes the socket.
	stop(ctx context.Context) error
}

// compiled are the settings in the hot path's form.
type compiled struct {
	domains []wire.Domain
	clients schema.Clients
}

// New returns a server that answers from zone, without sockets.
func New(zone *zone.Zone, reg prometheus.Registerer, log *slog.Logger) *Server {
	m := newMetrics(reg)
	s := &Server{log: log, metrics: m, sockets: map[schema.Socket]listening{},
		work:  newShares(maxWorkers, maxWorkersEach),
		conns: newConnections(rlimit.Files(maxConns, 4), maxConnsEach), slowTally: m.tally("udp"),
		tcpTally: m.tally("tcp")}
	s.forward = forward.New(m.forwarded.Inc)
	reg.MustRegister(s.forward)
	s.resolver = &Resolver{Zone: zone, Forward: s.forward.Forward, Walks: &Walks{}}
	s.forward.Source = note
	s.outside, s.caller = s.forward.Answer, s.ofCaller
	reg.MustRegister(&s.callers, s.conns)
	s.Configure(schema.Settings{})
	return s
}

// Configure replaces the settings.
func (s *Server) Configure(c schema.Settings) {
	s.settings.Store(&c)
	s.compiled.Store(&compiled{domains: wire.Domains(c.Domains), clients: schema.NewClients(c.Clients)})
	s.forward.Configure(c.Forwarding)
}

// SetCallers replaces the table of this node's pods.
func (s *Server) SetCallers(callers map[netip.Addr]schema.Caller) { s.callers.Set(callers) }

// Sockets returns the open sockets.
func (s *Server) Sockets() []schema.Socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []schema.Socket
	for k := range s.sockets {
		out = append(out, k)
	}
	return out
}

// Listen takes over a socket: exactly one of l and p is set. An open socket of the same name is replaced.
func (s *Server) Listen(k schema.Socket, l net.Listener, p net.PacketConn) {
	d, err := s.open(l, p)
	if err != nil {
		s.log.Error("a socket cannot be used", "socket", k, "err", err)
		return
	}
	s.mu.Lock()
	old := s.sockets[k]
	s.sockets[k] = d
	s.mu.Unlock()
	if old != nil {
		s.stop(k, old)
	}
	go func() {
		if err := d.serve(); err != nil {
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
func (s *Server) Keep(list []schema.Socket) {
	wanted := map[schema.Socket]bool{}
	for _, k := range list {
		wanted[k] = true
	}
	s.mu.Lock()
	gone := map[schema.Socket]listening{}
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

func (s *Server) stop(k schema.Socket, d listening) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := d.stop(ctx); err != nil {
		s.log.Warn("cannot close a socket, or queries that had arrived may be lost", "socket", k, "err", err)
	}
}

// ofCaller counts a query that the hot path answers for its pod. It returns true for queries that the slow path must
// handle: while a log has a reader, and the first step of a walk through a search list.
func (s *Server) ofCaller(client netip.Addr, q *wire.Question, domains []wire.Domain, missing bool) bool {
	if !s.logs.none() {
		return true
	}
	c := s.callers.at(client)
	if c == nil {
		return false
	}
	if missing && firstStep(&c.Caller, q, domains) && s.settings.Load().Autopath {
		return true
	}
	c.queries.Add(1)
	return false
}

// reply is the slow path: it makes the reply to a query of an allowed client.
func (s *Server) reply(q *dns.Msg, client netip.Addr, by transport) *dns.Msg {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), forward.Patience)
	defer cancel()
	var from schema.Caller // the zero one if it is not a pod of this node
	if c := s.callers.at(client); c != nil {
		c.queries.Add(1)
		from = c.Caller
	}
	qtype := uint16(0)
	var logs []*queryLog
	if len(q.Question) == 1 {
		qtype = q.Question[0].Qtype
		logs = s.logs.of(from, q.Question[0].Name)
	}
	var sources *trace
	if len(logs) > 0 {
		ctx, sources = traced(ctx)
	}
	m := s.resolve(ctx, q, from, by.size(q))
	if len(logs) > 0 {
		put(logs, logLine(start, client, from, by.network, m, sources.String()))
	}
	t := by.tally(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.query(qtype, m.Rcode, time.Since(start))
	return m
}

// resolve makes the reply to a query of the caller, who can get size bytes; 0 for no limit.
func (s *Server) resolve(ctx context.Context, q *dns.Msg, from schema.Caller, size int) *dns.Msg {
	set := s.settings.Load()
	r := *s.resolver
	r.Size = size
	r.Domains, r.Pods, r.Servers = set.Domains, set.Pods, set.VIPs
	m := r.Resolve(ctx, q)
	if set.Autopath && r.Autopath(ctx, q, m, from, set.Search) {
		s.metrics.autopath.Inc()
	}
	return m
}
