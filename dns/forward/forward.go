package forward

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	_ "golang.org/x/crypto/x509roots/fallback" // the image contains no certificates
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"wayleave.dev/dns/cache"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/internal/rlimit"
	"wayleave.dev/model"
)

// Patience bounds the work on one query, with all of its tries.
const Patience = 4 * time.Second

// Forwarding bounds.
const (
	// upstreamTries is the maximum number of concurrent tries; above it queries get SERVFAIL, so that dead upstreams
	// cannot exhaust the memory. They use at most half of the process's file descriptors.
	upstreamTries = 4096
	// refreshes is the maximum number of concurrent refreshes of cache entries; further ones wait for the next client.
	refreshes = 256
	// hedgeAfter is how long a try is unanswered before the next server is queried, too.
	hedgeAfter = 500 * time.Millisecond
	// leastTries are made for a query, even if there is one server: datagrams get lost.
	leastTries = 3
	mostTries  = 6
	// mostRefusals of different servers end a query that has no pending try.
	mostRefusals = 32
	// tellReserve is left of a client's patience when servers are given up, to send the reason.
	tellReserve = 500 * time.Millisecond
	// staleAfter is how long a client waits for servers if there is a stale answer (RFC 8767, 5).
	staleAfter = 1800 * time.Millisecond
)

// Forwarder answers queries for names outside of the cluster: from hosts of the settings, the cache, then upstream
// servers. Safe for concurrent use.
type Forwarder struct {
	// Cache is for the hot path, as Answer is.
	Cache *cache.Cache

	dial dialer
	now  func() time.Time
	// Source is called with the source of an answer, for display.
	Source func(ctx context.Context, what string)
	// failed counts tries without a usable answer.
	failed func()
	slots  chan struct{}
	// refreshing bounds what is refreshed while clients get an older answer.
	refreshing chan struct{}
	flights    singleflight.Group

	mu     sync.Mutex // of Configure
	routes atomic.Pointer[routes]
}

// routes decides which servers are queried for which name. It is immutable.
type routes struct {
	settings schema.Forwarding
	all      map[model.Nameserver]*remote
	upstream []*remote
	stubs    map[string][]*remote
	hosts    *hosts
	roots    *x509.CertPool
	// generation separates queries of earlier settings.
	generation int
}

// New returns a Forwarder without upstreams; failed may be nil.
func New(failed func()) *Forwarder {
	if failed == nil {
		failed = func() {}
	}
	f := &Forwarder{Cache: cache.New(), dial: (&net.Dialer{}).DialContext, now: time.Now, failed: failed,
		Source: func(context.Context, string) {}, slots: make(chan struct{}, rlimit.Files(upstreamTries, 2)),
		refreshing: make(chan struct{}, refreshes)}
	f.routes.Store(&routes{})
	return f
}

// Configure replaces the settings. Servers that remain keep their health. The cache is cleared if servers or hosts
// changed.
func (f *Forwarder) Configure(s schema.Forwarding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.routes.Load()
	f.Cache.Limit(s.Cache)
	same := old.settings
	same.Cache = s.Cache
	if reflect.DeepEqual(same, s) {
		return
	}
	r := &routes{settings: s, all: map[model.Nameserver]*remote{}, stubs: map[string][]*remote{},
		hosts: newHosts(s.Hosts), roots: roots(s.CA), generation: old.generation + 1}
	r.upstream = f.servers(r, old, s.Upstreams)
	for domain, list := range s.Stubs {
		r.stubs[domain] = f.servers(r, old, list)
	}
	f.routes.Store(r)
	f.Cache.Clear()
	for n, u := range old.all {
		if r.all[n] != u {
			u.close()
		}
	}
}

func (f *Forwarder) servers(r, old *routes, list []model.Nameserver) (out []*remote) {
	for _, n := range list {
		u := r.all[n]
		if u == nil && r.settings.CA == old.settings.CA {
			u = old.all[n]
		}
		if u == nil {
			u = newRemote(n, f.dial, r.roots)
		}
		u.plain.Store(slices.Contains(r.settings.PlainLetters, n.Addr))
		r.all[n] = u
		out = append(out, u)
	}
	return out
}

// roots returns the system's authorities or, if there are none, those built in (Mozilla's), and those of the settings.
func roots(ca string) *x509.CertPool {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	pool.AppendCertsFromPEM([]byte(ca)) // checked by the settings
	return pool
}

// Close ends the background work.
func (f *Forwarder) Close() { f.Configure(schema.Forwarding{}) }

// Answer appends the reply to a query to dst if the cache has it, like Cache.Lookup, and refreshes entries that expire
// soon.
func (f *Forwarder) Answer(dst, query []byte, size int) ([]byte, bool) {
	dst, hit := f.Cache.Lookup(dst, query, size, f.now())
	if hit == cache.Refresh {
		var key [cache.MaxKey]byte
		if q, ok := cache.Parse(query, &key); ok {
			f.refresh(append([]byte(nil), key[:q.Key]...))
		}
	}
	return dst, hit != cache.Miss
}

// refresh refreshes an entry in the background. If that is impossible, the next client that gets the entry tries again.
func (f *Forwarder) refresh(key []byte) {
	select {
	case f.refreshing <- struct{}{}:
	default:
		f.Cache.Unfetched(key)
		return
	}
	q, err := cache.QuestionOf(key)
	if err != nil {
		<-f.refreshing
		f.Cache.Drop(key)
		return
	}
	got := f.fetch(key, q)
	go func() {
		<-got
		<-f.refreshing
	}()
}

// Forward resolves a query: from the hosts, the cache, or upstream. The message belongs to the caller.
func (f *Forwarder) Forward(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	if m, ok := f.routes.Load().hosts.answer(q); ok {
		f.Source(ctx, "hosts")
		return m, nil
	}
	key, err := cache.KeyOf(q)
	if err != nil {
		return nil, fmt.Errorf("the name cannot be queried: %w", err)
	}
	e, hit := f.Cache.Find(key, f.now())
	if hit == cache.Refresh {
		f.refresh(key)
	}
	if hit != cache.Miss {
		f.Source(ctx, "cache")
		return f.unpack(e, q)
	}
	f.Cache.Missed(key)
	var patience <-chan time.Time
	if e = f.Cache.Old(key, f.now()); e != nil {
		t := time.NewTimer(staleAfter)
		defer t.Stop()
		patience = t.C
	}
	select {
	case got := <-f.fetch(key, q):
		if got.Err == nil {
			a := got.Val.(attempt)
			if a.partial && e != nil {
				break
			}
			f.Source(ctx, "upstream "+a.server.String())
			return copyFor(a.got, q), nil
		}
		err = got.Err
	case <-patience:
		f.Cache.Stalled(key, f.now())
	case <-ctx.Done():
		err = ctx.Err()
	}
	if e != nil {
		f.Cache.ServedStale(key)
		f.Source(ctx, "cache, stale")
		return f.unpack(e, q)
	}
	return nil, err
}

// fetch queries upstream once for all clients that wait for the same answer, and fills the cache. It continues when no
// client waits any more.
func (f *Forwarder) fetch(key []byte, q *dns.Msg) <-chan singleflight.Result {
	r := f.routes.Load()
	ask := new(dns.Msg)
	ask.SetQuestion(strings.ToLower(q.Question[0].Name), q.Question[0].Qtype)
	// All clients share one answer: upstream is asked whether it is authenticated (RFC 6840, 5.7), and clients that did
	// not ask do not learn it.
	ask.CheckingDisabled, ask.AuthenticatedData = q.CheckingDisabled, true
	ask.SetEdns0(wire.MaxUDP, wire.DNSSECOK(q))
	return f.flights.DoChan(fmt.Sprintf("%d %s", r.generation, key), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), Patience-tellReserve)
		defer cancel()
		got, err := f.follow(ctx, r, ask)
		switch {
		case f.routes.Load() != r: // of earlier settings: not cached
		case err == nil:
			if got.partial || got.got.Truncated { // for a moment, like failures
				if !got.partial {
					f.Cache.Drop(key)
				}
				f.Cache.Fail(key, got.got, f.now())
			} else if !f.Cache.Put(key, got.got, f.now()) {
				f.Cache.Drop(key) // the earlier answer is no longer true
			}
		case errors.Is(err, errBusy):
			f.Cache.Unfetched(key)
		default:
			f.Cache.Fail(key, new(dns.Msg).SetRcode(ask, dns.RcodeServerFailure), f.now())
		}
		return got, err
	})
}

// route returns the servers for a name: those of the longest domain above it.
func (r *routes) route(name string) []*remote {
	if len(r.stubs) > 0 {
		for at, end := 0, false; !end; at, end = dns.NextLabel(name, at) {
			if list, ok := r.stubs[name[at:]]; ok {
				return list
			}
		}
	}
	return r.upstream
}

// follow queries a name, and then the target of a CNAME if its server leaves that to the resolver, like one that serves
// only its own zone. If the target's servers have no answer, the CNAME alone is the answer.
func (f *Forwarder) follow(ctx context.Context, r *routes, ask *dns.Msg) (attempt, error) {
	a, err := f.exchange(ctx, r.route(ask.Question[0].Name), ask)
	for depth := 0; err == nil; depth++ {
		target, ok := dangling(a.got)
		if !ok {
			break
		}
		a.got.Ns, a.got.Extra = nil, nil // only the next server's count, and they occupy no memory meanwhile
		if depth == wire.MaxAliases {
			return attempt{}, fmt.Errorf("more than %d CNAMEs from server to server", wire.MaxAliases)
		}
		next := ask.Copy()
		next.Question[0].Name = target
		more, err := f.exchange(ctx, r.route(target), next)
		if err != nil {
			a.partial = !errors.Is(err, errBusy)
			if !a.partial {
				return attempt{}, err
			}
			break
		}
		a.got.Answer = append(a.got.Answer, more.got.Answer...)
		a.got.AuthenticatedData = a.got.AuthenticatedData && more.got.AuthenticatedData
		a.got.Rcode, a.got.Ns, a.got.Extra = more.got.Rcode, more.got.Ns, more.got.Extra
		a.got.Truncated = a.got.Truncated || more.got.Truncated
		if err := chain(a.got); err != nil {
			return attempt{}, fmt.Errorf("upstream %s: %w", more.server.Nameserver, err)
		}
		if len(more.got.Answer) == 0 {
			break
		}
	}
	return a, err
}

var errBusy = errors.New("too many queries are waiting for upstream servers")

type attempt struct {
	server *remote
	got    *dns.Msg
	err    error
	// partial is an incomplete answer, which is not cached.
	partial bool
}

// exchange queries one server after the other, healthy ones first. If a server is slow, the next one is queried, too.
func (f *Forwarder) exchange(ctx context.Context, list []*remote, ask *dns.Msg) (attempt, error) {
	if len(list) == 0 {
		return attempt{}, errors.New("there is no upstream server")
	}
	order := slices.Clone(list)
	slices.SortStableFunc(order, func(a, b *remote) int { return btoi(a.down()) - btoi(b.down()) })
	r := round{order: order, tries: min(max(len(order), leastTries), mostTries), refused: map[*remote]bool{}}
	results := make(chan attempt, r.tries+min(len(order), mostRefusals))
	hedge := time.NewTicker(hedgeAfter)
	defer hedge.Stop()
	var errs []error
	for running := 0; ; {
		if running == 0 {
			u := r.next()
			if u == nil {
				return r.give(errs)
			}
			if !f.try(ctx, u, ask, r.started-1, results) {
				return r.give(append(errs, errBusy))
			}
			running++
			hedge.Reset(hedgeAfter)
			continue
		}
		select {
		case a := <-results:
			running--
			if a.err == nil {
				return a, nil
			}
			r.failed(a)
			errs = append(errs, fmt.Errorf("upstream %s: %w", a.server.Nameserver, a.err))
		case <-hedge.C:
			if len(f.slots) > cap(f.slots)/2 {
				continue // the rest is for queries without a try yet
			}
			if u := r.next(); u != nil && f.try(ctx, u, ask, r.started-1, results) {
				running++
			}
		case <-ctx.Done():
			return r.give(append(errs, ctx.Err()))
		}
	}
}

// round is the state of tries for one query. A server that has refused is not tried again, and uses up no try: tries
// are for servers whose answer may be lost.
type round struct {
	order   []*remote
	tries   int
	started int
	at      int
	refused map[*remote]bool
	// lame is a server's referral to other servers: better than nothing.
	lame *dns.Msg
	from *remote
}

// give returns the best result if no server has an answer.
func (r *round) give(errs []error) (attempt, error) {
	if r.lame != nil {
		return attempt{server: r.from, got: r.lame}, nil
	}
	return attempt{}, errors.Join(errs...)
}

// next returns the next server, nil if there is none or no try is left.
func (r *round) next() *remote {
	if r.started >= r.tries {
		return nil
	}
	for range r.order {
		u := r.order[r.at%len(r.order)]
		r.at++
		if !r.refused[u] {
			r.started++
			return u
		}
	}
	return nil
}

// failed gives back the try of a server that has refused.
func (r *round) failed(a attempt) {
	if errors.Is(a.err, errLame) {
		r.lame, r.from = a.got, a.server
	}
	if isLost(a.err) || r.refused[a.server] {
		return
	}
	r.refused[a.server] = true
	if len(r.refused) <= mostRefusals {
		r.started--
	}
}

// isLost reports whether a try was unanswered, so that another one at the same server may succeed. All other errors are
// definite: a response code, a closed port, an invalid certificate.
func isLost(err error) bool {
	return isTimeout(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// try queries one server in the background; false if too many tries are running. It continues after another server has
// answered, to learn whether this one is alive. later is the number of earlier tries.
func (f *Forwarder) try(ctx context.Context, u *remote, ask *dns.Msg, later int, to chan<- attempt) bool {
	select {
	case f.slots <- struct{}{}:
	default:
		return false
	}
	go func() {
		defer func() { <-f.slots }()
		got, err := u.ask(context.WithoutCancel(ctx), ask, later)
		if err != nil {
			f.failed()
		}
		to <- attempt{server: u, got: got, err: err}
	}()
	return true
}

// Unpack returns a reply from the cache as a message.
func (f *Forwarder) unpack(e *cache.Entry, q *dns.Msg) (*dns.Msg, error) {
	m, err := f.Cache.Message(e, f.now())
	if err != nil {
		return nil, err
	}
	return copyFor(m, q), nil
}

// copyFor returns a reply for one client: with the letter case of its question, and rotated addresses.
func copyFor(m *dns.Msg, q *dns.Msg) *dns.Msg {
	m = m.Copy()
	m.Id, m.Question = q.Id, slices.Clone(q.Question)
	for _, rr := range m.Answer {
		if h := rr.Header(); strings.EqualFold(h.Name, q.Question[0].Name) {
			h.Name = q.Question[0].Name
		}
	}
	rotate(m.Answer)
	return m
}

// rotate starts each set of addresses at a random one. CNAMEs stay before their targets.
func rotate(list []dns.RR) {
	for n := 0; len(list) > 0; list = list[n:] {
		first := list[0].Header()
		n = 1
		if first.Rrtype != dns.TypeA && first.Rrtype != dns.TypeAAAA {
			continue
		}
		for n < len(list) && list[n].Header().Rrtype == first.Rrtype &&
			strings.EqualFold(list[n].Header().Name, first.Name) {
			n++
		}
		copy(list[:n], wire.Rotated(list[:n]))
	}
}

// Lacks returns the known limitations of servers, by server.
func (f *Forwarder) Lacks() map[string][]string {
	out := map[string][]string{}
	for n, u := range f.routes.Load().all {
		for l := range schema.LackKinds {
			if u.lacks(l, u.now()) {
				out[n.String()] = append(out[n.String()], l.String())
			}
		}
	}
	return out
}

// servers returns all servers of the settings, to order metrics.
func (r *routes) servers() []*remote {
	return slices.SortedFunc(maps.Values(r.all), func(a, b *remote) int {
		return strings.Compare(a.String(),
			b.String())
	})
}
