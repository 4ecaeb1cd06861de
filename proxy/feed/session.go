package feed

import (
	"os"
	"slices"
	"time"

	"wayleave.dev/internal/frame"
	"wayleave.dev/proxy/table"
)

// session is one connected proxy, with what it lacks; guarded by Feed.mu.
type session struct {
	wake     chan struct{}
	whole    bool
	kinds    [kinds]lacking
	settings bool
	listen   bool
	holds    map[Socket]bool
	report   Report
	// waits has since when a host or a deletion is held back.
	waits map[string]time.Time
}

// lacking are the keys of a kind that changed.
type lacking struct{ dirty map[string]struct{} }

func newSession(holds []Socket) *session {
	s := &session{wake: make(chan struct{}, 1), whole: true, settings: true, listen: true, holds: map[Socket]bool{},
		waits: map[string]time.Time{}}
	for i := range s.kinds {
		s.kinds[i].dirty = map[string]struct{}{}
	}
	for _, k := range holds {
		s.holds[k] = true
	}
	s.poke()
	return s
}

func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// hold says whether something that has to wait still is to, and notes since when. What
// waits again later waits anew.
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

// next takes what the session lacks. retry, if not 0, is when to come again.
func (f *Feed) next(s *session) (u Update, files []*os.File, retry time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.settings && f.settings != nil {
		u.Settings, s.settings = f.settings, false
	}
	switch {
	// What an agent does not know yet, a proxy keeps from before.
	case !f.hosts.synced || !f.backends.synced || !f.certs.synced:
	case s.whole:
		s.whole = false
		u.Hosts, u.Backends, u.Certificates = all(&f.hosts), all(&f.backends), all(&f.certs)
		for i := range s.kinds {
			clear(s.kinds[i].dirty)
		}
	default:
		if f.changes(s, &u) {
			retry = grace / 4
		}
	}
	// A socket is often shared with another pod's proxy that serves: one without routes
	// would answer some of its connections with 404.
	if s.listen && f.listen != nil && !s.whole && !s.settings {
		var again bool
		if u.Listen, files, again = f.open(s); again {
			retry = time.Second
		}
		s.listen = again
	}
	return u, files, retry
}

func all[P any](p *part[P]) *Delta[P] {
	d := &Delta[P]{Whole: true, Set: make(map[string]P, len(p.have))}
	for k, v := range p.have {
		d.Set[k] = v
	}
	return d
}

// changes takes the changed keys, but for those that wait for others.
func (f *Feed) changes(s *session, u *Update) (held bool) {
	now := time.Now()
	hosts := take(&f.hosts, s, func(k string, h *table.Host) bool {
		return s.hold("h "+k, h != nil && !f.complete(h), now)
	})
	// A host that waits is still as it was at the proxy, with all that it named then.
	waiting := len(s.kinds[hostKind].dirty) > 0
	keep := func(name string, gone bool) bool { return s.hold(name, gone && (waiting || f.names[name] > 0), now) }
	u.Hosts = hosts
	u.Backends = take(&f.backends, s, func(k string, b *table.Backend) bool { return keep(backendName(k), b == nil) })
	u.Certificates = take(&f.certs, s, func(k string, c *table.Certificate) bool {
		return keep(certificateName(k), c == nil)
	})
	for i := range s.kinds {
		held = held || len(s.kinds[i].dirty) > 0
	}
	return held
}

// take makes a delta of the dirty keys that hold lets go; nil when there are none.
func take[P any](p *part[P], s *session, hold func(string, *P) bool) *Delta[P] {
	dirty := s.kinds[p.kind].dirty
	if len(dirty) == 0 {
		return nil
	}
	d := &Delta[P]{Set: map[string]P{}}
	for k := range dirty {
		v, ok := p.have[k]
		is := &v
		if !ok {
			is = nil
		}
		if hold(k, is) {
			continue
		}
		delete(dirty, k)
		if ok {
			d.Set[k] = v
		} else {
			d.Deleted = append(d.Deleted, k)
		}
	}
	if len(d.Set)+len(d.Deleted) == 0 {
		return nil
	}
	return d
}

// open takes the sockets that the session lacks. again says that one could not be opened.
func (f *Feed) open(s *session) (l *Listening, files []*os.File, again bool) {
	l = &Listening{All: []Socket{}, Wanted: len(f.listen)}
	for k := range s.holds {
		if !slices.Contains(f.listen, k) {
			delete(s.holds, k)
		}
	}
	for _, k := range f.listen {
		if s.holds[k] {
			l.All = append(l.All, k)
			continue
		}
		if len(files) == frame.MaxPassed {
			again = true
			continue
		}
		file, err := f.Sockets.Open(k)
		if err != nil {
			if was := f.failures[k]; was == nil || was.Error() != err.Error() {
				f.Log.Warn("could not open a proxy's socket, trying again", "socket", k, "err", err)
			}
			f.failures[k] = err
			again = true
			continue
		}
		delete(f.failures, k)
		s.holds[k] = true
		l.All, l.Passed, files = append(l.All, k), append(l.Passed, k), append(files, file)
	}
	return l, files, again
}
