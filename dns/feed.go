package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"wayleave.dev/internal/frame"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// Feed is the agent's side: it holds what the server should know, and tells every
// server that connects, whole at first and then what changes. A server that is
// slow or dead holds nobody up: changes wait for it merged by key.
type Feed struct {
	// Open makes the sockets that a server lacks. It is called when a server
	// connects and when the wanted sockets change.
	Open func(Socket) (*os.File, error)
	// AllowUID may connect, beside root.
	AllowUID uint32
	Log      *slog.Logger

	mu       sync.Mutex
	synced   bool
	entries  map[model.Name]Entry
	settings *Settings // nil until the agent knows them
	callers  map[netip.Addr]Caller
	guests   []netip.Prefix
	admits   bool     // guests are known
	sockets  []Socket // nil until the agent knows them
	before   []Socket // those of an earlier agent
	rest     bool     // DNS is off
	servers  map[*session]struct{}
}

var _ reconcile.Target[model.Name, Entry] = (*Feed)(nil)

// session is one connected server.
type session struct {
	wake chan struct{}
	// Guarded by Feed.mu:
	whole    bool
	dirty    map[model.Name]struct{}
	settings bool
	callers  bool
	guests   bool
	sockets  bool
	known    bool // the server has names, from an earlier agent
	lacks    map[string][]string
	holds    map[Socket]bool
	// What the server was told of guests, when it may be told again, and whether it is to be woken for that.
	guestsHas   []netip.Prefix
	guestsKnown bool
	guestsAt    time.Time
	guestsWait  bool
}

func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Sync replaces all entries.
func (f *Feed) Sync(_ context.Context, plans map[model.Name]Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entries, f.synced = plans, true
	for s := range f.servers {
		s.whole = true
		s.poke()
	}
	return nil
}

// Apply changes some entries.
func (f *Feed) Apply(_ context.Context, set map[model.Name]Entry, del []model.Name) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, e := range set {
		f.entries[k] = e
	}
	for _, k := range del {
		delete(f.entries, k)
	}
	for s := range f.servers {
		for k := range set {
			s.dirty[k] = struct{}{}
		}
		for _, k := range del {
			s.dirty[k] = struct{}{}
		}
		s.poke()
	}
	return nil
}

// Configure replaces the settings.
func (f *Feed) Configure(c Settings) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settings = &c
	for s := range f.servers {
		s.settings, s.guests = true, true // which guests the settings cover has changed
		s.poke()
	}
}

// Know replaces the table of this node's pods.
func (f *Feed) Know(callers map[netip.Addr]Caller) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if maps.EqualFunc(f.callers, callers, Caller.equal) && f.callers != nil {
		return
	}
	f.callers = callers
	for s := range f.servers {
		s.callers = true
		s.poke()
	}
}

// Callers is the number of addresses of this node's pods that are known.
func (f *Feed) Callers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.callers)
}

// Listen replaces the list of sockets that servers should serve.
func (f *Feed) Listen(list []Socket) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sockets = slices.Clone(list)
	for s := range f.servers {
		s.sockets = true
		s.poke()
	}
}

// Rest tells servers that DNS is off. They close what they serve, and are ready. It is for
// a feed that is told nothing else.
func (f *Feed) Rest() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rest = true
	for s := range f.servers {
		s.poke()
	}
}

// listenedBefore are the sockets for as long as the agent does not know which: of
// servers alone that can answer by what an earlier agent told them.
func (f *Feed) listenedBefore(list []Socket) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = list
}

// Servers is the number of connected servers.
func (f *Feed) Servers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.servers)
}

// Serve accepts servers until ctx ends.
func (f *Feed) Serve(ctx context.Context, l *net.UnixListener) error {
	err := frame.Serve(ctx, l, f.session, func(err error) { f.Log.Warn("dns server lost", "err", err) })
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("dns feed: %w", err)
	}
	return err
}

// helloWithin is how long a server that connected may be silent.
const helloWithin = 10 * time.Second

// helloLimits bound what a server says: it reads hostile bytes, and may be captured.
func helloLimits() frame.Limits { return frame.Limits{Bytes: 64 << 10} }

func (f *Feed) session(ctx context.Context, c *net.UnixConn) error {
	if err := frame.Only(c, f.AllowUID); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(helloWithin)); err != nil {
		return err
	}
	var h hello
	if _, err := frame.ReceiveWithin(c, &h, helloLimits()); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if h.Version != protocolVersion {
		return fmt.Errorf("the server speaks version %d, this agent %d", h.Version, protocolVersion)
	}
	s := &session{wake: make(chan struct{}, 1), whole: true, settings: true, callers: true, guests: true, sockets: true,
		known: h.Known, dirty: map[model.Name]struct{}{}, holds: map[Socket]bool{}}
	for _, k := range h.Holds {
		s.holds[k] = true
	}
	s.poke()
	f.mu.Lock()
	if f.servers == nil {
		f.servers = map[*session]struct{}{}
	}
	f.servers[s] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.servers, s)
	}()
	gone := make(chan error, 1)
	go func() { gone <- f.listen(ctx, c, s) }() // this notices the server's end
	return f.talk(ctx, c, s, gone)
}

// news is what a server says after hello: what its upstream servers cannot do. It may not be nil.
type news struct {
	Lacks map[string][]string `json:"lacks"`
}

// newsPause is the least time between two news: a server that says more waits.
const newsPause = time.Second

// listen takes the news of a server until it ends, or says something else.
func (f *Feed) listen(ctx context.Context, c *net.UnixConn, s *session) error {
	for {
		var n news
		if _, err := frame.ReceiveWithin(c, &n, helloLimits()); err != nil {
			return err
		}
		if n.Lacks == nil {
			return errors.New("the server said something else than hello and news")
		}
		f.mu.Lock()
		s.lacks = f.known(n.Lacks)
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(newsPause):
		}
	}
}

// known are the news of servers that the settings have, in words of ours: a captured server can say nothing else.
// It is called with mu held.
func (f *Feed) known(lacks map[string][]string) map[string][]string {
	out := map[string][]string{}
	if f.settings == nil {
		return out
	}
	for n := range f.settings.Forwarding.servers() {
		said := lacks[n.String()]
		for l := range lackKinds {
			if slices.Contains(said, l.String()) && !slices.Contains(out[n.String()], l.String()) {
				out[n.String()] = append(out[n.String()], l.String())
			}
		}
	}
	return out
}

// Lacks are what upstream servers of the settings cannot do, by server, as the connected servers have found: edns0,
// letters, tcp.
func (f *Feed) Lacks() map[string][]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string][]string{}
	for s := range f.servers {
		for n, list := range f.known(s.lacks) {
			for _, l := range list {
				if !slices.Contains(out[n], l) {
					out[n] = append(out[n], l)
				}
			}
		}
	}
	return out
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
		if err == nil {
			err = frame.Send(c, u, files)
		}
		for _, file := range files {
			file.Close()
		}
		if err != nil {
			return err
		}
		if retry {
			time.AfterFunc(time.Second, s.poke)
		}
	}
}

// next takes what the session lacks. retry says that a socket could not be opened.
func (f *Feed) next(s *session) (u update, files []*os.File, retry bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rest {
		return update{Rest: true}, nil, false
	}
	// What an agent does not know yet, a server keeps from before.
	if s.settings && f.settings != nil {
		u.Settings, s.settings = f.settings, false
	}
	if s.callers && f.callers != nil {
		u.Callers, s.callers = f.callers, false
	}
	u.Guests = f.nextGuests(s)
	switch {
	case !f.synced:
	case s.whole:
		u.Whole, s.whole = true, false
		for k, e := range f.entries {
			u.Set = append(u.Set, pair{k, e})
		}
		clear(s.dirty)
	default:
		for k := range s.dirty {
			if e, ok := f.entries[k]; ok {
				u.Set = append(u.Set, pair{k, e})
			} else {
				u.Deleted = append(u.Deleted, k)
			}
		}
		clear(s.dirty)
	}
	list := f.sockets
	if list == nil && s.known {
		list = f.before
	}
	// A socket is often shared with another pod's server: one that knows no names would deny
	// them to some of its clients.
	if s.sockets && list != nil && (!s.whole || s.known) {
		u.Sockets, u.Passed, files, retry = f.open(s, list)
		s.sockets = retry
	}
	return u, files, retry
}

func (f *Feed) open(s *session, list []Socket) (all, passed []Socket, files []*os.File, retry bool) {
	all = slices.Clone(list)
	for k := range s.holds {
		if !slices.Contains(all, k) {
			delete(s.holds, k)
		}
	}
	for _, k := range all {
		if s.holds[k] || len(files) == frame.MaxPassed {
			continue
		}
		file, err := f.Open(k)
		if err != nil {
			f.Log.Warn("could not open a DNS socket, trying again", "socket", k, "err", err)
			retry = true
			continue
		}
		s.holds[k] = true
		passed, files = append(passed, k), append(files, file)
	}
	return all, passed, files, retry
}
