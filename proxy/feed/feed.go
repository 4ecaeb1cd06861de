// Package feed is the agent's side of the proxy's hand-off: it sends its routes to every proxy of the node.
//
// Invariants:
//   - Certificates with their keys, and users with their password hashes, are on the socket and in memory, never on
//     disk: a proxy that starts waits for an agent.
//   - A host is not sent before the backends and the certificate that it names, and those are not removed while
//     it names them; otherwise a changed route would lead requests nowhere.
package feed

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"wayleave.dev/internal/handoff"
	"wayleave.dev/proxy/frames"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/reconcile"
)

// grace bounds how long a host waits for the objects that it names, and how long the feed keeps objects that hosts
// still name: three loops plan the three kinds independently.
const grace = time.Second

// Feed is the agent's side: it holds the desired state of proxies, and sends it to every proxy that
// connects. Make it with New; its methods may be called concurrently.
type Feed struct {
	out handoff.Feed[schema.Socket, session, frames.Update, frames.Report]
	// keeper holds the listening sockets for proxies.
	keeper *handoff.Keeper[schema.Socket]
	log    *slog.Logger

	// The fields below are guarded by the lock of out.
	hosts    part[schema.Host]
	backends part[schema.Backend]
	certs    part[schema.Certificate]
	// names counts the hosts that name a backend or certificate.
	names    map[string]int
	settings handoff.Value[schema.Settings]
	listen   handoff.Value[[]schema.Socket]
	sockets  handoff.Opener[schema.Socket]
}

// New returns a feed for proxies that run as a user. Root may connect, too.
func New(uid uint32, keeper *handoff.Keeper[schema.Socket], log *slog.Logger) *Feed {
	f := &Feed{keeper: keeper, log: log, names: map[string]int{},
		sockets: handoff.Opener[schema.Socket]{Open: keeper.Open, Log: log}}
	f.out = handoff.Feed[schema.Socket, session, frames.Update, frames.Report]{Protocol: frames.Handoff(),
		AllowUID: uid, Log: log,
		Adopt: f.adopt, Begin: f.begin, Next: f.next, Report: f.note, End: f.end}
	f.hosts = part[schema.Host]{feed: f, changed: func(was, is *schema.Host) {
		f.count(was, -1)
		f.count(is, +1)
	}}
	f.backends = part[schema.Backend]{feed: f}
	f.certs = part[schema.Certificate]{feed: f}
	return f
}

// Hosts returns the target of the hosts' plans, by name.
func (f *Feed) Hosts() reconcile.Target[string, schema.Host] { return &f.hosts }

// Backends returns the target of the backends' plans, by key.
func (f *Feed) Backends() reconcile.Target[string, schema.Backend] { return &f.backends }

// Certificates returns the target of the certificates' plans, by key.
func (f *Feed) Certificates() reconcile.Target[string, schema.Certificate] { return &f.certs }

// Configure replaces the settings. Proxies wait for the first.
func (f *Feed) Configure(s schema.Settings) { f.out.Change(func() { f.settings.Set(s) }) }

// Listen replaces the list of sockets that proxies should serve.
func (f *Feed) Listen(list []schema.Socket) {
	f.out.Change(func() {
		f.listen.Set(slices.Clone(list))
		f.sockets.Keep(list)
		f.keeper.Keep(list)
	})
}

// Failures returns the sockets that could not be opened, with the error: a port that another program has. They are
// retried.
func (f *Feed) Failures() (out map[schema.Socket]error) {
	f.out.View(func([]*session) { out = f.sockets.Failures() })
	return out
}

// Reports returns what the connected proxies last reported, merged.
func (f *Feed) Reports() frames.Report {
	all := frames.Report{Certificates: map[string]string{}}
	f.out.View(func(proxies []*session) {
		for _, p := range proxies {
			maps.Copy(all.Certificates, p.report.Certificates)
		}
	})
	return all
}

// Proxies returns the number of connected proxies.
func (f *Feed) Proxies() int { return f.out.Children() }

// Serve accepts proxies until ctx ends.
func (f *Feed) Serve(ctx context.Context, l *net.UnixListener) error { return f.out.Serve(ctx, l) }

// part is the state of one keyed kind; it is guarded by its feed's lock.
type part[P any] struct {
	feed    *Feed
	table   handoff.Table[string, P]
	changed func(was, is *P) // may be nil
}

// Sync implements reconcile.Target.
func (p *part[P]) Sync(_ context.Context, plans map[string]P) error {
	p.feed.out.Change(func() {
		if p.changed != nil {
			for _, v := range p.table.All() {
				p.changed(&v, nil)
			}
			for _, v := range plans {
				p.changed(nil, &v)
			}
		}
		p.table.Replace(plans)
	})
	return nil
}

// Apply implements reconcile.Target.
func (p *part[P]) Apply(_ context.Context, set map[string]P, del []string) error {
	p.feed.out.Change(func() {
		for k, v := range set {
			p.note(k, &v)
		}
		for _, k := range del {
			p.note(k, nil)
		}
		p.table.Change(set, del)
	})
	return nil
}

// note calls changed with the new value of a key; nil for none.
func (p *part[P]) note(k string, is *P) {
	if p.changed == nil {
		return
	}
	if was, had := p.table.Get(k); had {
		p.changed(&was, is)
	} else {
		p.changed(nil, is)
	}
}

// Keys of Feed.names.
func backendName(key string) string     { return "b " + key }
func certificateName(key string) string { return "c " + key }

// named calls yield for everything that a host names.
func named(h *schema.Host, yield func(string)) {
	if h.Certificate != "" {
		yield(certificateName(h.Certificate))
	}
	if h.OtherCertificate != "" {
		yield(certificateName(h.OtherCertificate))
	}
	if c := h.ClientCert; c != nil {
		yield(certificateName(c.Authority))
	}
	path := func(p *schema.Path) {
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

func (f *Feed) count(h *schema.Host, by int) {
	if h == nil {
		return
	}
	named(h, func(name string) {
		if f.names[name] += by; f.names[name] == 0 {
			delete(f.names, name)
		}
	})
}

// complete reports whether everything that a host names is known, except the authorities of its clients: without them
// the host refuses all clients, and its previous version must not stay.
func (f *Feed) complete(h *schema.Host) bool {
	all := true
	named(h, func(name string) {
		var ok bool
		if h.ClientCert != nil && name == certificateName(h.ClientCert.Authority) {
			return
		}
		if name[0] == 'c' {
			_, ok = f.certs.table.Get(name[2:])
		} else {
			_, ok = f.backends.table.Get(name[2:])
		}
		all = all && ok
	})
	return all
}

// adopt keeps the sockets of a proxy that outlived its agent.
func (f *Feed) adopt(holds []schema.Socket, files []*os.File) {
	if err := f.keeper.AdoptAll(holds, files); err != nil {
		f.log.Warn("a proxy's socket cannot be used", "err", err)
	}
}

// maxReason bounds the text about an invalid certificate, in bytes.
const maxReason = 512

// note keeps the part of a report that is about known certificates, as text that is safe for a terminal. A captured
// proxy can report nothing else.
func (f *Feed) note(s *session, r frames.Report) error {
	s.report = frames.Report{}
	for key, why := range r.Certificates {
		if _, ok := f.certs.table.Get(key); !ok {
			continue
		}
		if s.report.Certificates == nil {
			s.report.Certificates = map[string]string{}
		}
		if len(why) > maxReason {
			why = why[:maxReason]
		}
		s.report.Certificates[key] = strings.Map(printable, strings.ToValidUTF8(why, "?"))
	}
	return nil
}

func printable(r rune) rune {
	if !unicode.IsPrint(r) {
		return '?'
	}
	return r
}
