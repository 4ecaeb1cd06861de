package feed

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

// keeperChild is the path at which the child of TestTheOlderAgentGivesSocketsAgain takes
// sockets over.
const keeperChild = "WAYLEAVE_TEST_KEEPER"

// TestKeeperChild is an agent that takes sockets over, and is killed.
func TestKeeperChild(t *testing.T) {
	path := os.Getenv(keeperChild)
	if path == "" {
		return // it is only there for the other
	}
	k := &Keeper{Path: path, Log: slog.New(slog.DiscardHandler)}
	t.Error(k.Serve(t.Context()))
}

// An agent, a process, takes the sockets over and is killed, again and again: the older one
// has them still, and the next one can take them over from it.
func TestTheOlderAgentGivesSocketsAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sockets.sock")
	log := slog.New(slog.DiscardHandler)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket := Socket{Addr: netip.MustParseAddrPort(free.Addr().String())}
	free.Close()
	old := &Keeper{Path: path, Log: log}
	f, err := old.Open(socket)
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
		next := &Keeper{Path: path, Log: log, Bind: func(k Socket) (*os.File, error) {
			return nil,
				fmt.Errorf("%s was not handed over", k)
		}}
		defer next.Keep(nil)
		if err := next.Inherit(t.Context()); err != nil {
			return err
		}
		f, err := next.Open(socket)
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
		c, err := net.Dial("tcp", socket.Addr.String()) // whoever comes is served on
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
