package dns

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"wayleave.dev/dns/frames"
	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/handoff"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// Feed is the agent's side: it holds the desired state of servers, and sends it to every server that connects. Set the
// fields before Serve. Methods may be called concurrently.
type Feed struct {
	// Open opens the sockets that a server lacks. It is called when a server connects and when the desired sockets
	// change.
	Open func(schema.Socket) (*os.File, error)
	// AllowUID may connect; root may, too.
	AllowUID uint32
	Log      *slog.Logger

	out handoff.Feed[schema.Socket, session, frames.Update, frames.News]

	// The fields below are guarded by the lock of out.
	entries  handoff.Table[model.Name, schema.Records]
	settings handoff.Value[schema.Settings]
	callers  handoff.Value[map[netip.Addr]schema.Caller]
	guests   handoff.Value[[]netip.Prefix]
	wanted   handoff.Value[[]schema.Socket]
	before   []schema.Socket // those of an earlier agent
	rest     bool            // DNS is off
	sockets  handoff.Opener[schema.Socket]
}

var _ reconcile.Target[model.Name, schema.Records] = (*Feed)(nil)

// session is the agent's state of one connected server; guarded by the feed's lock.
type session struct {
	entries  *handoff.Cursor[model.Name, schema.Records]
	settings uint64 // the revisions that the server has
	callers  uint64
	wanted   uint64
	holds    map[schema.Socket]bool
	known    bool // the server has names, from an earlier agent
	before   bool // the server was offered the sockets of an earlier agent
	lacks    map[string][]string
	guests   guestsTold
}

// Sync replaces all entries.
func (f *Feed) Sync(_ context.Context, plans map[model.Name]schema.Records) error {
	f.out.Change(func() { f.entries.Replace(plans) })
	return nil
}

// Apply changes some entries.
func (f *Feed) Apply(_ context.Context, set map[model.Name]schema.Records, del []model.Name) error {
	f.out.Change(func() { f.entries.Change(set, del) })
	return nil
}

// Configure replaces the settings.
func (f *Feed) Configure(c schema.Settings) { f.out.Change(func() { f.settings.Set(c) }) }

// SetCallers replaces the table of this node's pods.
func (f *Feed) SetCallers(callers map[netip.Addr]schema.Caller) {
	f.out.Change(func() {
		if have, known := f.callers.Get(); !known || !maps.EqualFunc(have, callers, schema.Caller.Equal) {
			f.callers.Set(callers)
		}
	})
}

// Callers returns the number of known addresses of this node's pods.
func (f *Feed) Callers() (n int) {
	f.out.View(func([]*session) {
		have, _ := f.callers.Get()
		n = len(have)
	})
	return n
}

// Listen replaces the list of sockets that servers should serve.
func (f *Feed) Listen(list []schema.Socket) {
	f.out.Change(func() {
		f.wanted.Set(slices.Clone(list))
		f.sockets.Keep(list)
	})
}

// Disable tells servers that DNS is disabled: they close their sockets, and are ready. It is for a feed without other
// state.
func (f *Feed) Disable() { f.out.Change(func() { f.rest = true }) }

// listenedBefore offers the sockets of an earlier agent while this agent does not know which to serve, and only to
// servers that have an earlier agent's records.
func (f *Feed) listenedBefore(list []schema.Socket) { f.out.Change(func() { f.before = list }) }

// Servers returns the number of connected servers.
func (f *Feed) Servers() int { return f.out.Children() }

// Serve accepts servers until ctx ends.
func (f *Feed) Serve(ctx context.Context, l *net.UnixListener) error {
	f.out.Change(func() {
		f.sockets.Open, f.sockets.Log = f.Open, f.Log
		f.out.Protocol, f.out.AllowUID, f.out.Log = frames.Handoff(), f.AllowUID, f.Log
		f.out.Begin, f.out.Next, f.out.Report, f.out.End = f.begin, f.next, f.note, f.end
	})
	return f.out.Serve(ctx, l)
}

func (f *Feed) begin(h handoff.Hello[schema.Socket]) *session {
	return &session{entries: f.entries.Cursor(), holds: handoff.Held(h.Holds), known: h.Known}
}

func (f *Feed) end(s *session) { s.entries.Close() }

// note records the news of a server.
func (f *Feed) note(s *session, n frames.News) error {
	if n.Lacks == nil {
		return errors.New("unexpected message of the server: neither hello nor news")
	}
	s.lacks = f.known(n.Lacks)
	return nil
}

// known returns the news about servers in the settings, as constant text: a captured server can say nothing else. The
// lock must be held.
func (f *Feed) known(lacks map[string][]string) map[string][]string {
	out := map[string][]string{}
	settings, _ := f.settings.Get()
	for n := range settings.Forwarding.Servers() {
		said := lacks[n.String()]
		for l := range schema.LackKinds {
			if slices.Contains(said, l.String()) && !slices.Contains(out[n.String()], l.String()) {
				out[n.String()] = append(out[n.String()], l.String())
			}
		}
	}
	return out
}

// Lacks returns what upstream servers of the settings cannot do, by server, as the connected servers have detected:
// edns0, letters, tcp.
func (f *Feed) Lacks() map[string][]string {
	out := map[string][]string{}
	f.out.View(func(servers []*session) {
		for _, s := range servers {
			for n, list := range f.known(s.lacks) {
				for _, l := range list {
					if !slices.Contains(out[n], l) {
						out[n] = append(out[n], l)
					}
				}
			}
		}
	})
	return out
}

// next takes what a server lacks.
func (f *Feed) next(s *session) (out handoff.Update[frames.Update]) {
	u := &frames.Update{}
	out.Frame = u
	if f.rest {
		u.Rest = true
		return out
	}
	// A server keeps the earlier agent's state of what this agent does not know yet.
	if c, lacks := f.settings.Next(&s.settings); lacks {
		u.Settings = &c
	}
	if c, lacks := f.callers.Next(&s.callers); lacks {
		u.Callers = c
	}
	u.Guests, out.Retry = f.nextGuests(&s.guests, time.Now())
	if d := s.entries.Next(nil); d != nil {
		u.Whole, u.Deleted = d.Whole, d.Deleted
		for k, e := range d.Set {
			u.Set = append(u.Set, frames.Pair{Key: k, Records: e})
		}
	}
	// A socket is often shared with another pod's server: a server without names would deny them to some of its
	// clients.
	if !s.entries.LacksWhole() || s.known {
		var again time.Duration
		if out.Files, again = f.nextSockets(s, u); again > 0 {
			out.Retry = again
		}
	}
	return out
}

// nextSockets adds the sockets that a server lacks to an update.
func (f *Feed) nextSockets(s *session, u *frames.Update) (files []*os.File, again time.Duration) {
	list, known := f.wanted.Get()
	switch {
	case known && f.wanted.Revision() != s.wanted:
	case !known && s.known && f.before != nil && !s.before:
		list = f.before
	default:
		return nil, 0
	}
	l, files, again := f.sockets.Next(list, s.holds)
	u.Sockets, u.Passed = list, l.Passed
	if again == 0 {
		s.wanted, s.before = f.wanted.Revision(), !known
	}
	return files, again
}
