package feed

import (
	"time"

	"wayleave.dev/internal/handoff"
	"wayleave.dev/proxy/frames"
	"wayleave.dev/proxy/schema"
)

// session is the agent's state of one connected proxy; guarded by the feed's lock.
type session struct {
	hosts    *handoff.Cursor[string, schema.Host]
	backends *handoff.Cursor[string, schema.Backend]
	certs    *handoff.Cursor[string, schema.Certificate]
	settings uint64 // the revisions that the proxy has
	listen   uint64
	holds    map[schema.Socket]bool
	report   frames.Report
	// waits holds since when a host or a deletion is held back.
	waits map[string]time.Time
}

func (f *Feed) begin(h handoff.Hello[schema.Socket]) *session {
	return &session{hosts: f.hosts.table.Cursor(), backends: f.backends.table.Cursor(), certs: f.certs.table.Cursor(),
		holds: handoff.Held(h.Holds), waits: map[string]time.Time{}}
}

func (f *Feed) end(s *session) {
	s.hosts.Close()
	s.backends.Close()
	s.certs.Close()
}

// hold reports whether something must still wait, and records since when. If it has to wait again later, the time
// starts anew.
func (s *session) hold(name string, wait bool, now time.Time) bool {
	if wait {
		since, ok := s.waits[name]
		if !ok {
			since = now
			s.waits[name] = now
		}
		if now.Sub(since) < grace {
			return true
		}
	}
	delete(s.waits, name)
	return false
}

// next takes what a proxy lacks.
func (f *Feed) next(s *session) (out handoff.Update[frames.Update]) {
	var u frames.Update
	if c, lacks := f.settings.Next(&s.settings); lacks {
		u.Settings = &c
	}
	// A proxy keeps the earlier agent's state of what this agent does not know yet.
	if f.hosts.table.Known() && f.backends.table.Known() && f.certs.table.Known() {
		if f.changes(s, &u) {
			out.Retry = grace / 4
		}
	}
	// A socket is often shared with another pod's proxy that serves: a proxy without routes would answer some of its
	// connections with 404.
	if !s.hosts.LacksWhole() && s.settings > 0 {
		before := s.listen
		if list, lacks := f.listen.Next(&s.listen); lacks {
			var again time.Duration
			if u.Listen, out.Files, again = f.sockets.Next(list, s.holds); again > 0 {
				out.Retry, s.listen = again, before
			}
		}
	}
	if u != (frames.Update{}) {
		out.Frame = &u
	}
	return out
}

// changes takes the changed keys, except those that wait for others. The first time it takes the complete state.
func (f *Feed) changes(s *session, u *frames.Update) (held bool) {
	now := time.Now()
	u.Hosts = s.hosts.Next(func(k string, h *schema.Host) bool {
		return s.hold("h "+k, h != nil && !f.complete(h), now)
	})
	// The proxy still has the previous version of a host that waits, with all that it named.
	waiting := s.hosts.Pending()
	keep := func(name string, gone bool) bool { return s.hold(name, gone && (waiting || f.names[name] > 0), now) }
	u.Backends = s.backends.Next(func(k string, b *schema.Backend) bool { return keep(backendName(k), b == nil) })
	u.Certificates = s.certs.Next(func(k string, c *schema.Certificate) bool {
		return keep(certificateName(k), c == nil)
	})
	return waiting || s.backends.Pending() || s.certs.Pending()
}
