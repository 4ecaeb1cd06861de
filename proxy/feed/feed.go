package feed

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"wayleave.dev/internal/frame"
	"wayleave.dev/proxy/table"
	"wayleave.dev/reconcile"
)

// grace bounds how long a host waits for what it names, and how long what hosts still
// name is kept: three loops plan the three kinds, each when it comes to it.
const grace = time.Second

// Feed is the agent's side: it holds what proxies should know, and tells every proxy that
// connects. A proxy that is slow or dead holds nobody up: changes wait for it merged by
// key. Make it with New; its methods may be called concurrently.
type Feed struct {
	// AllowUID may connect, beside root.
	AllowUID uint32
	// Sockets are what proxies are given to listen on.
	Sockets *Keeper
	Log     *slog.Logger

	mu       sync.Mutex
	hosts    part[table.Host]
	backends part[table.Backend]
	certs    part[table.Certificate]
	// names counts the hosts that name a backend or certificate.
	names    map[string]int
	settings *Settings
	listen   []Socket
	failures map[Socket]error
	proxies  map[*session]struct{}
}

// New makes a feed for proxies that run as a user.
func New(uid uint32, sockets *Keeper, log *slog.Logger) *Feed {
	f := &Feed{AllowUID: uid, Sockets: sockets, Log: log, names: map[string]int{}, proxies: map[*session]struct{}{},
		failures: map[Socket]error{}}
	f.hosts = part[table.Host]{feed: f, kind: hostKind, changed: func(was, is *table.Host) {
		f.count(was, -1)
		f.count(is, +1)
	}}
	f.backends = part[table.Backend]{feed: f, kind: backendKind}
	f.certs = part[table.Certificate]{feed: f, kind: certificateKind}
	return f
}

// Hosts is the target of the hosts' plans, by name.
func (f *Feed) Hosts() reconcile.Target[string, table.Host] { return &f.hosts }

// Backends is the target of the backends' plans, by key.
func (f *Feed) Backends() reconcile.Target[string, table.Backend] { return &f.backends }

// Certificates is the target of the certificates' plans, by key.
func (f *Feed) Certificates() reconcile.Target[string, table.Certificate] { return &f.certs }

// Configure replaces the settings. Proxies wait for the first.
func (f *Feed) Configure(s Settings) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settings = &s
	for p := range f.proxies {
		p.settings = true
		p.poke()
	}
}

// Listen replaces the list of sockets that proxies should serve.
func (f *Feed) Listen(list []Socket) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listen = append([]Socket{}, list...)
	maps.DeleteFunc(f.failures, func(k Socket, _ error) bool { return !slices.Contains(list, k) })
	f.Sockets.Keep(list)
	for p := range f.proxies {
		p.listen = true
		p.poke()
	}
}

// Failures are the sockets that could not be opened, with why: a port that another
// program has. They are tried again.
func (f *Feed) Failures() map[Socket]error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.failures)
}

// Reports are what the proxies that are connected last said of themselves, as one.
func (f *Feed) Reports() Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := Report{Certificates: map[string]string{}}
	for p := range f.proxies {
		maps.Copy(all.Certificates, p.report.Certificates)
	}
	return all
}

// Proxies is the number of connected proxies.
func (f *Feed) Proxies() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.proxies)
}

// kind numbers the keyed kinds in a session.
type kind int

const (
	hostKind kind = iota
	backendKind
	certificateKind
	kinds
)

// part is one keyed kind; it is guarded by its feed's lock.
type part[P any] struct {
	feed    *Feed
	kind    kind
	have    map[string]P
	synced  bool
	changed func(was, is *P) // may be nil
}

// Sync implements reconcile.Target.
func (p *part[P]) Sync(_ context.Context, plans map[string]P) error {
	p.feed.mu.Lock()
	defer p.feed.mu.Unlock()
	if p.have == nil {
		p.have = map[string]P{}
	}
	for k := range p.have {
		if _, ok := plans[k]; !ok {
			p.put(k, nil)
		}
	}
	for k, v := range plans {
		p.put(k, &v)
	}
	p.synced = true
	p.feed.pokeAll()
	return nil
}

// Apply implements reconcile.Target.
func (p *part[P]) Apply(_ context.Context, set map[string]P, del []string) error {
	p.feed.mu.Lock()
	defer p.feed.mu.Unlock()
	for k, v := range set {
		p.put(k, &v)
	}
	for _, k := range del {
		p.put(k, nil)
	}
	p.feed.pokeAll()
	return nil
}

func (p *part[P]) put(k string, v *P) {
	was, had := p.have[k]
	if p.changed != nil {
		if had {
			p.changed(&was, v)
		} else {
			p.changed(nil, v)
		}
	}
	if v != nil {
		p.have[k] = *v
	} else {
		delete(p.have, k)
	}
	for s := range p.feed.proxies {
		s.kinds[p.kind].dirty[k] = struct{}{}
	}
}

func (f *Feed) pokeAll() {
	for s := range f.proxies {
		s.poke()
	}
}

// Keys of Feed.names.
func backendName(key string) string     { return "b " + key }
func certificateName(key string) string { return "c " + key }

// named calls yield for all that a host names.
func named(h *table.Host, yield func(string)) {
	if h.Certificate != "" {
		yield(certificateName(h.Certificate))
	}
	if c := h.ClientCert; c != nil {
		yield(certificateName(c.Authority))
	}
	path := func(p *table.Path) {
		if p.Backend != "" {
			yield(backendName(p.Backend))
		}
		if p.Options == nil {
			return
		}
		for _, c := range p.Options.Canary {
			yield(backendName(c.Backend))
		}
		if u := p.Options.AuthURL; u != nil && u.Backend != "" {
			yield(backendName(u.Backend))
		}
		if m := p.Options.Mirror; m != nil && m.Backend != "" {
			yield(backendName(m.Backend))
		}
		if t := p.Options.TLS; t != nil {
			for _, key := range []string{t.Certificate, t.Authority} {
				if key != "" {
					yield(certificateName(key))
				}
			}
		}
		if e := p.Options.Errors; e != nil && e.Backend != "" {
			yield(backendName(e.Backend))
		}
	}
	for i := range h.Paths {
		path(&h.Paths[i])
	}
	if h.Default != nil {
		path(h.Default)
	}
}

func (f *Feed) count(h *table.Host, by int) {
	if h == nil {
		return
	}
	named(h, func(name string) {
		if f.names[name] += by; f.names[name] == 0 {
			delete(f.names, name)
		}
	})
}

// complete says whether all that a host names is here, but for the authorities of its clients:
// without them nobody is let in, and the host must not stay as it was before.
func (f *Feed) complete(h *table.Host) bool {
	all := true
	named(h, func(name string) {
		var ok bool
		if h.ClientCert != nil && name == certificateName(h.ClientCert.Authority) {
			return
		}
		if name[0] == 'c' {
			_, ok = f.certs.have[name[2:]]
		} else {
			_, ok = f.backends.have[name[2:]]
		}
		all = all && ok
	})
	return all
}

// Serve accepts proxies until ctx ends.
func (f *Feed) Serve(ctx context.Context, l *net.UnixListener) error {
	err := frame.Serve(ctx, l, f.session, func(err error) { f.Log.Warn("proxy lost", "err", err) })
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("proxy feed: %w", err)
	}
	return err
}

func (f *Feed) session(ctx context.Context, c *net.UnixConn) error {
	if err := frame.Only(c, f.AllowUID); err != nil {
		return err
	}
	var h hello
	if err := c.SetReadDeadline(time.Now().Add(helloWithin)); err != nil {
		return err
	}
	files, err := frame.ReceiveWithin(c, &h, helloLimits())
	if err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	f.adopt(h.Holds, files)
	if h.Version != protocolVersion {
		return fmt.Errorf("the proxy speaks version %d, this agent %d", h.Version, protocolVersion)
	}
	s := newSession(h.Holds)
	f.mu.Lock()
	f.proxies[s] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.proxies, s)
	}()
	gone := make(chan error, 1)
	go func() { gone <- f.listenTo(ctx, c, s) }()
	return f.talk(ctx, c, s, gone)
}

// adopt keeps the sockets of a proxy that outlived its agent.
func (f *Feed) adopt(holds []Socket, files []*os.File) {
	for i, file := range files {
		if i >= len(holds) {
			_ = file.Close()
			continue
		}
		if err := f.Sockets.Adopt(holds[i], file); err != nil {
			f.Log.Warn("a proxy's socket is of no use", "socket", holds[i], "err", err)
		}
	}
}

// Bounds of what a proxy says: it reads hostile bytes, and may be captured.
const (
	helloWithin = 10 * time.Second
	// reportEvery is how often a report is read.
	reportEvery = 100 * time.Millisecond
	// maxReason is the most bytes that are kept of what is wrong with a certificate.
	maxReason = 512
)

func helloLimits() frame.Limits { return frame.Limits{Bytes: 64 << 10, Files: frame.MaxPassed} }

func reportLimits() frame.Limits { return frame.Limits{Bytes: 4 << 20} }

// listenTo takes a proxy's reports, and notices its end.
func (f *Feed) listenTo(ctx context.Context, c *net.UnixConn, s *session) error {
	for {
		var r Report
		if _, err := frame.ReceiveWithin(c, &r, reportLimits()); err != nil {
			return err
		}
		f.mu.Lock()
		s.report = f.known(r)
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reportEvery):
		}
	}
}

// known is what a report says of certificates that there are, as text for a terminal; f.mu is
// held.
func (f *Feed) known(r Report) Report {
	out := Report{}
	for key, why := range r.Certificates {
		if _, ok := f.certs.have[key]; !ok {
			continue
		}
		if out.Certificates == nil {
			out.Certificates = map[string]string{}
		}
		if len(why) > maxReason {
			why = why[:maxReason]
		}
		out.Certificates[key] = strings.Map(printable, strings.ToValidUTF8(why, "?"))
	}
	return out
}

func printable(r rune) rune {
	if !unicode.IsPrint(r) {
		return '?'
	}
	return r
}

// talk sends what the session lacks whenever something changed.
func (f *Feed) talk(ctx context.Context, c *net.UnixConn, s *session, gone <-chan error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-gone:
			return err
		case <-s.wake:
		}
		u, files, retry := f.next(s)
		err := c.SetWriteDeadline(time.Now().Add(10 * time.Second))
		if err == nil && u != (Update{}) {
			err = frame.Send(c, u, files)
		}
		for _, file := range files {
			_ = file.Close()
		}
		if err != nil {
			return err
		}
		if retry > 0 {
			time.AfterFunc(retry, s.poke)
		}
	}
}
