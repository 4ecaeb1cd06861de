package feed

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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/frame"
	"wayleave.dev/internal/handoff"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/frames"
	"wayleave.dev/proxy/schema"
)

var discard = slog.New(slog.DiscardHandler)

// rig is a feed at a socket.
type rig struct {
	t    *testing.T
	feed *Feed
	path string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, feed: New(65533, NewKeeper("", discard), discard), path: filepath.Join(t.TempDir(), "proxy.sock")}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.feed.Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return r
}

func (r *rig) sync(hosts map[string]schema.Host, backends map[string]schema.Backend,
	certs map[string]schema.Certificate) {
	r.t.Helper()
	ctx := r.t.Context()
	if err := errors.Join(r.feed.Hosts().Sync(ctx, hosts), r.feed.Backends().Sync(ctx, backends),
		r.feed.Certificates().Sync(ctx, certs)); err != nil {
		r.t.Fatal(err)
	}
}

// seen is what a proxy knows, and what it was told in which order.
type seen struct {
	mu       sync.Mutex
	hosts    map[string]schema.Host
	backends map[string]schema.Backend
	certs    map[string]schema.Certificate
	settings *schema.Settings
	sockets  []schema.Socket
	updates  []frames.Update
	// lost are hosts that named what was not there.
	lost []string
	said frames.Report
}

// proxy follows the feed.
func (r *rig) proxy() *seen {
	s := &seen{hosts: map[string]schema.Host{}, backends: map[string]schema.Backend{},
		certs: map[string]schema.Certificate{}}
	ctx, cancel := context.WithCancel(r.t.Context())
	r.t.Cleanup(cancel)
	c := &handoff.Client[schema.Socket, frames.Update, frames.Report]{Protocol: frames.Handoff(), Socket: r.path,
		Hello: func() (h handoff.Hello[schema.Socket], files []*os.File) { return h, nil }, Take: s.take,
		Report: s.report,
		Same:   func(a, b frames.Report) bool { return maps.Equal(a.Certificates, b.Certificates) },
		Lost:   func(error) {}}
	go func() { _ = c.Run(ctx) }()
	return s
}

func put[P any](into map[string]P, d *frames.Delta[P], del bool) {
	switch {
	case d == nil:
	case del:
		for _, k := range d.Deleted {
			delete(into, k)
		}
	default:
		if d.Whole {
			clear(into)
		}
		maps.Copy(into, d.Set)
	}
}

func (s *seen) take(u frames.Update, files []*os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.updates = append(s.updates, u)
	if u.Settings != nil {
		s.settings = u.Settings
	}
	if u.Listen != nil {
		s.sockets = u.Listen.All
		if len(u.Listen.Passed) != len(files) {
			s.lost = append(s.lost, fmt.Sprintf("%d descriptors for %v", len(files), u.Listen.Passed))
		}
	}
	put(s.backends, u.Backends, false)
	put(s.certs, u.Certificates, false)
	put(s.hosts, u.Hosts, false)
	put(s.hosts, u.Hosts, true)
	put(s.backends, u.Backends, true)
	put(s.certs, u.Certificates, true)
	for name, h := range s.hosts {
		named(&h, func(what string) {
			_, b := s.backends[what[2:]]
			_, c := s.certs[what[2:]]
			if !b && !c {
				s.lost = append(s.lost, name+" names "+what)
			}
		})
	}
}

func (s *seen) report() frames.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said
}

// eventually waits until the proxy knows that.
func (s *seen) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testnet.Eventually(t, 10*time.Second, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !ok() {
			return fmt.Errorf("not yet: %s", what)
		}
		return nil
	})
}

func (s *seen) told() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.updates)
}

func host(name, backend, cert string) schema.Host {
	return schema.Host{Name: name, Certificate: cert,
		Paths: []schema.Path{{Path: "/", Kind: schema.Prefix, Backend: backend}}}
}

// Nothing is told before all is known; then the whole, then what changes, to each proxy.
func TestProxiesGetTheWholeThenChanges(t *testing.T) {
	r := newRig(t)
	one, two := r.proxy(), r.proxy()
	testnet.Eventually(t, 10*time.Second, func() error {
		if r.feed.Proxies() != 2 {
			return errors.New("not connected")
		}
		return nil
	})
	ctx := t.Context()
	if err := errors.Join(r.feed.Hosts().Sync(ctx, map[string]schema.Host{"a": host("a", "b", "c")}),
		r.feed.Backends().Sync(ctx, map[string]schema.Backend{"b": {Key: "b"}})); err != nil {
		t.Fatal(err)
	}
	if n := one.told(); n != 0 {
		t.Errorf("told %d times before the certificates were known", n)
	}
	if err := r.feed.Certificates().Sync(ctx,
		map[string]schema.Certificate{"c": {Key: "c", Chain: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	r.feed.Configure(schema.Settings{Tries: 7})
	for _, s := range []*seen{one, two} {
		s.eventually(t, "the whole", func() bool {
			return len(s.hosts) == 1 && len(s.backends) == 1 && string(s.certs["c"].Chain) == "x" &&
				s.settings != nil && s.settings.Tries == 7
		})
	}
	before := one.told()
	if err := r.feed.Backends().Apply(ctx,
		map[string]schema.Backend{"b": {Key: "b",
			Endpoints: []schema.Endpoint{{Addr: netip.MustParseAddrPort("10.0.0.1:80")}}}}, nil); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*seen{one, two} {
		s.eventually(t, "a change", func() bool { return len(s.backends["b"].Endpoints) == 1 })
	}
	one.mu.Lock()
	for _, u := range one.updates[before:] {
		if u.Hosts != nil || u.Certificates != nil || u.Backends == nil || u.Backends.Whole ||
			len(u.Backends.Set) != 1 {
			t.Errorf("one backend changed, told was %+v", u)
		}
	}
	one.mu.Unlock()
	// A Sync takes away what is not in it.
	r.sync(map[string]schema.Host{"z": host("z", "", "")}, nil, nil)
	for _, s := range []*seen{one, two} {
		s.eventually(t, "the next whole", func() bool {
			_, z := s.hosts["z"]
			return z && len(s.hosts) == 1 &&
				len(s.backends)+len(s.certs) == 0
		})
		if len(s.lost) > 0 {
			t.Errorf("%v", s.lost)
		}
	}
}

// An agent may know the sockets long before the routes; a proxy is not to answer from what
// it does not have.
func TestAProxyHasRoutesBeforeSockets(t *testing.T) {
	r := newRig(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	r.feed.Listen([]schema.Socket{{Addr: netip.MustParseAddrPort(free.Addr().String())}})
	s := r.proxy()
	testnet.Eventually(t, 10*time.Second, func() error {
		if r.feed.Proxies() != 1 {
			return errors.New("not connected")
		}
		return nil
	})
	r.feed.Configure(schema.Settings{Tries: 7})
	s.eventually(t, "the settings", func() bool { return s.settings != nil })
	r.sync(map[string]schema.Host{"a": host("a", "", "")}, nil, nil)
	s.eventually(t, "the socket", func() bool { return len(s.sockets) == 1 })
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.updates {
		if u.Listen != nil && u.Hosts == nil {
			t.Errorf("the sockets came in an update without the routes: %+v", u)
		}
		if u.Hosts != nil {
			return
		}
	}
}

// Whatever the order of the three kinds' changes, no proxy ever has a host that names what
// it has not; what never comes holds a host up for a moment only.
func TestHostsComeBehindWhatTheyName(t *testing.T) {
	r := newRig(t)
	r.sync(map[string]schema.Host{"a": host("a", "b0", "c0")}, map[string]schema.Backend{"b0": {Key: "b0"}},
		map[string]schema.Certificate{"c0": {Key: "c0"}})
	s := r.proxy()
	s.eventually(t, "the first", func() bool { return len(s.hosts) == 1 })
	ctx := t.Context()
	for i := 1; i <= 60; i++ {
		b, c := fmt.Sprintf("b%d", i), fmt.Sprintf("c%d", i)
		wasB, wasC := fmt.Sprintf("b%d", i-1), fmt.Sprintf("c%d", i-1)
		steps := []func() error{
			func() error { return r.feed.Hosts().Apply(ctx, map[string]schema.Host{"a": host("a", b, c)}, nil) },
			func() error {
				return r.feed.Backends().Apply(ctx, map[string]schema.Backend{b: {Key: b}}, []string{wasB})
			},
			func() error {
				return r.feed.Certificates().Apply(ctx, map[string]schema.Certificate{c: {Key: c}}, []string{wasC})
			},
		}
		for k := range steps { // all orders in turn
			if err := steps[[][]int{{0, 1, 2}, {1, 2, 0}, {2, 0, 1}, {0, 2, 1}, {1, 0, 2},
				{2, 1, 0}}[i%6][k]](); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond) // so that each may be told by itself
		}
	}
	s.eventually(t, "the last", func() bool {
		return s.hosts["a"].Certificate == "c60" && len(s.backends) == 1 &&
			len(s.certs) == 1
	})
	if len(s.lost) > 0 {
		t.Errorf("%d times: %v", len(s.lost), s.lost[0])
	}
	start := time.Now()
	if err := r.feed.Hosts().Apply(ctx, map[string]schema.Host{"x": host("x", "never", "")}, nil); err != nil {
		t.Fatal(err)
	}
	s.eventually(t, "a host whose backend never comes", func() bool { _, ok := s.hosts["x"]; return ok })
	if d := time.Since(start); d < grace/2 {
		t.Errorf("it waited only %s", d)
	}
}

// A host that waited once waits as long the next time, also where others wait all the time.
func TestEachWaitBeginsAnew(t *testing.T) {
	r := newRig(t)
	r.sync(map[string]schema.Host{"a": host("a", "", "c0")}, nil, map[string]schema.Certificate{"c0": {Key: "c0"}})
	s := r.proxy()
	s.eventually(t, "the first", func() bool { return len(s.hosts) == 1 })
	ctx := t.Context()
	apply := func(hosts map[string]schema.Host, certs map[string]schema.Certificate) {
		t.Helper()
		if err := errors.Join(r.feed.Hosts().Apply(ctx, hosts, nil), r.feed.Certificates().Apply(ctx, certs,
			nil)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 12 { // one and a half times as long as a host may wait, and some of the next
		other := fmt.Sprintf("x%d", i)
		apply(map[string]schema.Host{other: host(other, "never", "")}, nil)
		if i == 0 || i == 8 {
			cert := fmt.Sprintf("c%d", i+1)
			apply(map[string]schema.Host{"a": host("a", "", cert)}, nil)
			time.Sleep(grace / 6) // the certificate is late
			apply(nil, map[string]schema.Certificate{cert: {Key: cert}})
			s.eventually(t, cert, func() bool { return s.hosts["a"].Certificate == cert })
		}
		time.Sleep(grace / 6)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lost {
		if strings.HasPrefix(l, "a ") {
			t.Error(l)
		}
	}
}

// Only root, the agent's user and the proxy's may connect, and only by this version.
func TestStrangersAreNotTold(t *testing.T) {
	r := newRig(t)
	r.sync(map[string]schema.Host{}, nil, map[string]schema.Certificate{"c": {Key: "c", Priv: []byte("secret")}})
	r.feed.Configure(schema.Settings{})
	if os.Getuid() != 0 {
		t.Fatal("run as root, to become another user")
	}
	for _, f := range []string{r.path, filepath.Dir(r.path), filepath.Dir(filepath.Dir(r.path))} {
		if err := os.Chmod(f, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	try := func(uid, version int) error {
		var c net.Conn
		err := testnet.As(uid, func() (err error) {
			c, err = net.Dial("unix", r.path)
			return err
		})
		if err != nil {
			return err
		}
		defer c.Close()
		u := c.(*net.UnixConn)
		_ = u.SetDeadline(time.Now().Add(10 * time.Second))
		if err := frame.Send(u, handoff.Hello[schema.Socket]{Version: version}, nil); err != nil {
			return err
		}
		var got frames.Update
		_, err = frame.Receive(u, &got)
		return err
	}
	for _, x := range []struct {
		uid, version int
		ok           bool
	}{{65533, frames.Handoff().Version, true}, {0, frames.Handoff().Version, true},
		{65532, frames.Handoff().Version, false},
		{1000, frames.Handoff().Version, false}, {65533, frames.Handoff().Version + 1, false}} {
		if err := try(x.uid, x.version); (err == nil) != x.ok {
			t.Errorf("user %d with version %d: %v", x.uid, x.version, err)
		}
	}
}

// A captured proxy says what it likes: the agent keeps what is about certificates that there
// are, in words for a terminal, and no more sockets than one proxy has.
func TestACapturedProxyIsBounded(t *testing.T) {
	r := newRig(t)
	r.sync(map[string]schema.Host{}, nil, map[string]schema.Certificate{"c": {Key: "c"}})
	r.feed.Configure(schema.Settings{})
	connect := func() *net.UnixConn {
		t.Helper()
		c, err := net.Dial("unix", r.path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		return c.(*net.UnixConn)
	}
	ends := func(what string, c *net.UnixConn) {
		t.Helper()
		for {
			var u frames.Update
			if _, err := frame.Receive(c, &u); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: the agent goes on", what)
			} else if err == nil {
				continue
			}
			return
		}
	}
	c := connect()
	why := map[string]string{"c": "\x1b[2J" + strings.Repeat("x", 4096), "unknown": "y"}
	if err := errors.Join(frame.Send(c, handoff.Hello[schema.Socket]{Version: frames.Handoff().Version}, nil),
		frame.Send(c, frames.Report{Certificates: why},
			nil)); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 30*time.Second, func() error {
		got := r.feed.Reports().Certificates
		if text := got["c"]; len(got) != 1 || len(text) != maxReason || strings.Contains(text, "\x1b") {
			return fmt.Errorf("the agent keeps %d bytes: %.60q", len(text), got)
		}
		return nil
	})
	if err := frame.Send(c, map[string]int{"other": 1}, nil); err != nil {
		t.Fatal(err)
	}
	ends("an unknown field", c)
	c = connect()
	if err := frame.Send(c, handoff.Hello[schema.Socket]{Version: frames.Handoff().Version,
		Holds: make([]schema.Socket, 1<<14)},
		nil); err == nil {
		ends("a long hello", c)
	}
	for range 3 { // 64 sockets each, which listen where they say
		c := connect()
		list, files := make([]schema.Socket, frame.MaxPassed), make([]*os.File, frame.MaxPassed)
		for i := range list {
			var lc net.ListenConfig
			lc.SetMultipathTCP(false)
			l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			list[i] = schema.Socket{Addr: netip.MustParseAddrPort(l.Addr().String())}
			files[i], err = l.(*net.TCPListener).File()
			if err := errors.Join(err, l.Close()); err != nil {
				t.Fatal(err)
			}
		}
		if err := frame.Send(c, handoff.Hello[schema.Socket]{Version: frames.Handoff().Version, Holds: list},
			files); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			_ = f.Close()
		}
	}
	testnet.Eventually(t, 30*time.Second, func() error {
		list := r.feed.keeper.Sockets()
		if n := r.feed.Proxies(); n != 3 || len(list) != handoff.MaxHeld {
			return fmt.Errorf("%d proxies, and %d sockets are kept: %d are allowed", n, len(list), handoff.MaxHeld)
		}
		return nil
	})
	r.feed.keeper.Keep(nil)
}

// A port that another program has is a failure with a reason, is tried again, and stops no
// other socket.
func TestATakenPortIsAFact(t *testing.T) {
	r := newRig(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	good, bad := schema.Socket{Addr: netip.MustParseAddrPort(free.Addr().String())},
		schema.Socket{Addr: netip.MustParseAddrPort(taken.Addr().String()), TLS: true}
	free.Close()
	s := r.proxy()
	r.feed.Configure(schema.Settings{})
	r.sync(nil, nil, nil)
	r.feed.Listen([]schema.Socket{bad, good})
	s.eventually(t, "the free one", func() bool { return slices.Equal(s.sockets, []schema.Socket{good}) })
	if err := r.feed.Failures()[bad]; !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("failure: %v", err)
	}
	taken.Close()
	s.eventually(t, "the other, once it is free", func() bool { return len(s.sockets) == 2 })
	if f := r.feed.Failures(); len(f) > 0 {
		t.Errorf("failures: %v", f)
	}
	r.feed.Listen([]schema.Socket{bad})
	s.eventually(t, "one that is not wanted any more",
		func() bool { return slices.Equal(s.sockets, []schema.Socket{bad}) })
	l, err := net.Listen("tcp", good.Addr.String())
	if err != nil {
		t.Fatalf("it stays open: %v", err)
	}
	l.Close()
}
