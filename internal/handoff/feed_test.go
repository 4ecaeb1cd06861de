package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"wayleave.dev/internal/frame"
	"wayleave.dev/internal/testnet"
)

const childUser = 65533

// message is an update of these tests, and said is a report.
type message struct {
	State  *Delta[string, int] `json:"state,omitempty"`
	Listen *Listening[socket]  `json:"listen,omitempty"`
}

type said struct {
	Text string `json:"text"`
}

func testProtocol() Protocol {
	return Protocol{Child: "child", Version: 3, PassesSockets: true, ReportBytes: 1 << 10,
		ReportPause: time.Millisecond}
}

// note is what the agent of these tests notes of a child.
type note struct {
	state  *Cursor[string, int]
	listen uint64
	holds  map[socket]bool
	report string
}

// agent is a feed at a unix socket.
type agent struct {
	Feed[socket, note, message, said]
	path   string
	keeper *Keeper[socket]
	state  Table[string, int]
	wanted Value[[]socket]
	opener Opener[socket]
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	a := &agent{keeper: newKeeper(""), path: filepath.Join(testnet.Open(t), "agent.sock")}
	a.opener = Opener[socket]{Open: a.keeper.Open, Log: slog.New(slog.DiscardHandler)}
	a.Protocol, a.AllowUID, a.Log = testProtocol(), childUser, slog.New(slog.DiscardHandler)
	a.Adopt = func(list []socket, files []*os.File) { _ = a.keeper.AdoptAll(list, files) }
	a.Begin = func(h Hello[socket]) *note { return &note{state: a.state.Cursor(), holds: Held(h.Holds)} }
	a.Report = func(n *note, r said) error { n.report = r.Text; return nil }
	a.End = func(n *note) { n.state.Close() }
	a.Next = func(n *note) (u Update[message]) {
		m := message{State: n.state.Next(nil)}
		if list, lacks := a.wanted.Next(&n.listen); lacks {
			m.Listen, u.Files, u.Retry = a.opener.Next(list, n.holds)
		}
		if m != (message{}) {
			u.Frame = &m
		}
		return u
	}
	return a
}

// serve serves until stop.
func (a *agent) serve(t *testing.T) (stop func()) {
	t.Helper()
	if err := os.Remove(a.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.path})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(a.path, 0o666); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.Serve(ctx, l); !errors.Is(err, context.Canceled) {
			t.Errorf("serve: %v", err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

// kid is a child that follows an agent.
type kid struct {
	mu      sync.Mutex
	have    map[string]int
	files   map[socket]*os.File
	text    string
	version int
	ended   int
}

func (k *kid) run(t *testing.T, path string) {
	k.files = map[socket]*os.File{}
	p := testProtocol()
	if k.version != 0 {
		p.Version = k.version
	}
	c := Client[socket, message, said]{Protocol: p, Socket: path, Hello: k.hello, Take: k.take,
		Report: func() said { k.mu.Lock(); defer k.mu.Unlock(); return said{k.text} },
		Same:   func(a, b said) bool { return a == b }, ReportEvery: 10 * time.Millisecond,
		Ended: func() { k.mu.Lock(); defer k.mu.Unlock(); k.ended++ }, Lost: func(error) {}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func (k *kid) hello() (h Hello[socket], files []*os.File) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for s, f := range k.files {
		copied, err := duplicate(f)
		if err != nil {
			panic(err)
		}
		h.Holds, files = append(h.Holds, s), append(files, copied)
	}
	return h, files
}

func (k *kid) take(m message, files []*os.File) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := m.State; d != nil {
		if d.Whole {
			k.have = map[string]int{}
		}
		maps.Copy(k.have, d.Set)
		for _, name := range d.Deleted {
			delete(k.have, name)
		}
	}
	if m.Listen == nil {
		return
	}
	for i, s := range m.Listen.Passed {
		f, err := duplicate(files[i])
		if err != nil {
			panic(err)
		}
		k.files[s] = f
	}
}

func (k *kid) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testnet.Eventually(t, 20*time.Second, func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if !ok() {
			return fmt.Errorf("not yet: %s; the child has %v", what, k.have)
		}
		return nil
	})
}

// The agent ends and another starts: the child keeps state and sockets meanwhile, gives the sockets to
// the next agent, which may not bind them, and gets the whole state anew.
func TestAChildOutlivesItsAgent(t *testing.T) {
	a := newAgent(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := socket{netip.MustParseAddrPort(free.Addr().String())}
	free.Close()
	stop := a.serve(t)
	one, two := &kid{text: "fine"}, &kid{}
	one.run(t, a.path)
	two.run(t, a.path)
	a.Change(func() { a.state.Replace(map[string]int{"a": 1, "b": 2}); a.wanted.Set([]socket{s}) })
	for _, k := range []*kid{one, two} {
		k.eventually(t, "the whole", func() bool { return k.have["a"] == 1 && k.have["b"] == 2 && len(k.files) == 1 })
	}
	a.Change(func() { a.state.Change(map[string]int{"a": 3}, []string{"b"}) })
	for _, k := range []*kid{one, two} {
		k.eventually(t, "the change", func() bool { return maps.Equal(k.have, map[string]int{"a": 3}) })
	}
	testnet.Eventually(t, 20*time.Second, func() (err error) {
		a.View(func(children []*note) {
			reports := map[string]bool{}
			for _, n := range children {
				reports[n.report] = true
			}
			if len(children) != 2 || !reports["fine"] {
				err = fmt.Errorf("%d children reported %v", len(children), reports)
			}
		})
		return err
	})
	stop()
	a.keeper.Keep(nil)
	one.eventually(t, "the end of the agent", func() bool { return one.ended > 0 && one.have["a"] == 3 })

	next := newAgent(t)
	next.path = a.path
	next.keeper.Bind = func(s socket) (*os.File, error) { return nil, fmt.Errorf("%v is to be handed over", s) }
	next.state.Replace(map[string]int{"c": 4})
	next.serve(t)
	for _, k := range []*kid{one, two} {
		k.eventually(t, "the next whole", func() bool { return maps.Equal(k.have, map[string]int{"c": 4}) })
	}
	if list := next.keeper.Sockets(); len(list) != 1 || list[0] != s {
		t.Errorf("the next agent has the sockets %v, want %v", list, s)
	}
}

// A child of another version gets nothing, and its sockets are kept for the child that comes next.
func TestAnotherVersionOnlyHandsItsSocketsOver(t *testing.T) {
	for _, version := range []int{testProtocol().Version - 1, testProtocol().Version + 1} {
		a := newAgent(t)
		f, err := bind(socket{netip.MustParseAddrPort("127.0.0.1:0")})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.FileListener(f)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		s := socket{netip.MustParseAddrPort(l.Addr().String())}
		a.state.Replace(map[string]int{"a": 1})
		a.wanted.Set([]socket{s})
		a.keeper.Bind = func(s socket) (*os.File, error) { return nil, fmt.Errorf("%v is to be handed over", s) }
		a.serve(t)
		old := &kid{version: version}
		old.run(t, a.path)
		old.mu.Lock()
		old.files[s] = f
		old.mu.Unlock()
		old.eventually(t, "the refusal", func() bool { return old.ended > 1 && old.have == nil })
		fresh := &kid{}
		fresh.run(t, a.path)
		fresh.eventually(t, "state and socket", func() bool { return fresh.have["a"] == 1 && len(fresh.files) == 1 })
	}
}

// Each row is what a captured child does; the agent ends the connection, and goes on for others.
func TestACapturedChildIsBounded(t *testing.T) {
	a := newAgent(t)
	a.state.Replace(map[string]int{})
	a.serve(t)
	good := Hello[socket]{Version: testProtocol().Version}
	many := make([]*os.File, frame.MaxPassed)
	for i := range many {
		many[i] = os.Stderr
	}
	for name, x := range map[string]struct {
		uid    int
		frames []any
		files  []*os.File
		ends   bool
	}{
		"good":             {childUser, []any{good, said{"x"}}, nil, false},
		"root":             {0, []any{good}, nil, false},
		"another user":     {childUser + 1, []any{good}, nil, true},
		"an unknown field": {childUser, []any{map[string]int{"version": good.Version, "more": 1}}, nil, true},
		"another version":  {childUser, []any{Hello[socket]{Version: good.Version + 1}}, nil, true},
		"a long hello": {childUser,
			[]any{Hello[socket]{Version: good.Version, Holds: make([]socket, helloBytes)}}, nil, true},
		"hello twice":         {childUser, []any{good, good}, nil, true},
		"a long report":       {childUser, []any{good, said{string(make([]byte, 2<<10))}}, nil, true},
		"files without names": {childUser, []any{good}, many, false},
		"a file with no socket": {childUser, []any{Hello[socket]{Version: good.Version, Holds: []socket{{}}}},
			many[:1], false},
	} {
		t.Run(name, func(t *testing.T) {
			var c net.Conn
			if err := testnet.As(x.uid, func() (err error) {
				c, err = net.Dial("unix", a.path)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			u := c.(*net.UnixConn)
			for i, f := range x.frames {
				var files []*os.File
				if i == 0 {
					files = x.files
				}
				_ = frame.Send(u, f, files) // an error says that the agent has ended it
			}
			wait := 30 * time.Second
			if !x.ends {
				wait = 200 * time.Millisecond
			}
			_ = u.SetReadDeadline(time.Now().Add(wait))
			var err error
			for err == nil {
				var m message
				_, err = frame.Receive(u, &m)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) == x.ends {
				t.Errorf("the connection ends by %v", err)
			}
		})
	}
	testnet.Eventually(t, 30*time.Second, func() error {
		if n := a.Children(); n != 0 {
			return fmt.Errorf("%d children are still there", n)
		}
		return nil
	})
	if list := a.keeper.Sockets(); len(list) > 0 {
		t.Errorf("sockets that are none were kept: %v", list)
	}
}
