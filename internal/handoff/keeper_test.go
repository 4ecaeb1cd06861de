package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// socket is a listening socket of these tests.
type socket struct {
	Addr netip.AddrPort `json:"addr"`
}

func newKeeper(path string) *Keeper[socket] {
	return &Keeper[socket]{Path: path, Bind: bind, Log: slog.New(slog.DiscardHandler),
		Check: func(s socket, f *os.File) error { return ListensTCP(f, s.Addr) }}
}

func bind(s socket) (*os.File, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", s.Addr.String())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

// keeperChild is the path at which the child of TestTheOlderAgentGivesSocketsAgain takes
// sockets over.
const keeperChild = "WAYLEAVE_TEST_KEEPER"

// TestKeeperChild is an agent that takes sockets over, and is killed.
func TestKeeperChild(t *testing.T) {
	path := os.Getenv(keeperChild)
	if path == "" {
		return // it is only there for the other
	}
	k := newKeeper(path)
	t.Error(k.Serve(t.Context()))
}

// An agent, a process, takes the sockets over and is killed, again and again: the older one
// has them still, and the next one can take them over from it.
func TestTheOlderAgentGivesSocketsAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sockets.sock")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	shared := socket{Addr: netip.MustParseAddrPort(free.Addr().String())}
	free.Close()
	old := newKeeper(path)
	f, err := old.Open(shared)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := old.Serve(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	defer func() { cancel(); wg.Wait(); old.Keep(nil); l.Close() }()
	// inherits says whether an agent that comes now has the socket.
	inherits := func() error {
		next := newKeeper(path)
		next.Bind = func(k socket) (*os.File, error) { return nil, fmt.Errorf("%v was not handed over", k) }
		defer next.Keep(nil)
		if err := next.Inherit(t.Context()); err != nil {
			return err
		}
		f, err := next.Open(shared)
		if err != nil {
			return err
		}
		return f.Close()
	}
	testnet.Eventually(t, 10*time.Second, inherits)
	for range 2 {
		was, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestKeeperChild$")
		cmd.Env = append(os.Environ(), keeperChild+"="+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		testnet.Eventually(t, 20*time.Second, func() error { // it took the path, and gives
			now, err := os.Stat(path)
			if err == nil && os.SameFile(was, now) && was.ModTime().Equal(now.ModTime()) {
				err = errors.New("the new agent has not taken over")
			}
			return errors.Join(err, inherits())
		})
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err := inherits(); err == nil {
			t.Error("somebody gives sockets, though the agent that did is dead")
		}
		c, err := net.Dial("tcp", shared.Addr.String()) // whoever comes is served on
		if err != nil {
			t.Fatal(err)
		}
		served, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = served.Close(), c.Close()
		testnet.Eventually(t, 20*time.Second, inherits)
	}
}

// Of two agents of a node, the later one binds new sockets: what the earlier one bound would end with it, since sockets
// are inherited once. When the later one has gone, the earlier one binds again.
func TestTheLaterAgentBindsNewSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sockets.sock")
	var wg sync.WaitGroup
	serve := func() (*Keeper[socket], func()) {
		k := newKeeper(path)
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if err := k.Serve(ctx); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		testnet.Eventually(t, 10*time.Second, func() error { _, err := os.Stat(path); return err })
		return k, func() { cancel(); k.Keep(nil) }
	}
	opens := func(k *Keeper[socket]) error {
		f, err := k.Open(socket{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
		if err != nil {
			return err
		}
		k.Keep(nil)
		k.Keep([]socket{{Addr: netip.MustParseAddrPort("127.0.0.1:0")}})
		return f.Close()
	}
	earlier, endEarlier := serve()
	if err := opens(earlier); err != nil {
		t.Fatalf("alone: %v", err)
	}
	later, endLater := serve()
	testnet.Eventually(t, 20*time.Second, func() error {
		if err := opens(earlier); !errors.Is(err, errSucceeded) {
			return fmt.Errorf("beside a later agent: %v", err)
		}
		return nil
	})
	if err := opens(later); err != nil {
		t.Errorf("the later agent: %v", err)
	}
	endLater()
	testnet.Eventually(t, 20*time.Second, func() error { return opens(earlier) })
	endEarlier()
	wg.Wait()
}

// A descriptor that a child passes to an agent that may bind must be the socket it is said to be.
func TestAdoptedSocketsAreLookedAt(t *testing.T) {
	k := newKeeper("")
	f, err := bind(socket{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := netip.MustParseAddrPort(l.Addr().String())
	if err := k.Adopt(socket{Addr: netip.AddrPortFrom(addr.Addr(), 443)}, f); err == nil {
		t.Error("a socket at another port is taken")
	}
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Adopt(socket{Addr: addr}, file); err == nil {
		t.Error("a file is taken")
	}
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cf, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Adopt(socket{Addr: netip.MustParseAddrPort(c.LocalAddr().String())}, cf); err == nil {
		t.Error("a connection is taken")
	}
	good, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Adopt(socket{Addr: addr}, good); err != nil {
		t.Errorf("a good one: %v", err)
	}
	again, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	k.Keep([]socket{})
	if err := k.Adopt(socket{Addr: addr}, again); err != nil || len(k.Sockets()) > 0 {
		t.Errorf("one that is not wanted: %v, %d held", err, len(k.Sockets()))
	}
}
