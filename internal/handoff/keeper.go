package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/frame"
)

// Keeper holds the listening sockets of a node while children and agents are replaced. It also passes them to the next
// agent. All processes share one queue of connections per socket, so no connection is refused or lost when one of them
// ends. Methods may be called concurrently.
type Keeper[S comparable] struct {
	// Path is the unix socket by which agents of a node hand sockets over; empty for none.
	Path string
	// Bind opens a socket. Check refuses a descriptor that is not the claimed socket: it comes from a process that
	// cannot bind.
	Bind  func(S) (*os.File, error)
	Check func(S, *os.File) error
	Log   *slog.Logger

	mu   sync.Mutex
	held map[S]*os.File
	want map[S]bool // nil before Keep: all
	// succeeded means that a later agent of the node has the path. It cannot inherit what is bound from now on.
	succeeded bool
}

var errSucceeded = errors.New("a later agent of the node opens new sockets")

// Open returns a copy of a socket. It binds the socket if no child or agent has passed it. While a later agent of the
// node runs, it binds none: the later agent binds it, and could not inherit it from this one.
func (k *Keeper[S]) Open(s S) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.held[s]
	if f == nil {
		if k.succeeded {
			return nil, errSucceeded
		}
		var err error
		if f, err = k.Bind(s); err != nil {
			return nil, err
		}
		k.put(s, f)
	}
	return duplicate(f)
}

func (k *Keeper[S]) put(s S, f *os.File) {
	if k.held == nil {
		k.held = map[S]*os.File{}
	}
	k.held[s] = f
}

func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var inner error
	if err := raw.Control(func(p uintptr) { fd, inner = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) }); err != nil ||
		inner != nil {
		return nil, errors.Join(err, inner)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// MaxHeld bounds the sockets that a Keeper adopts, because the child that holds them may be captured.
const MaxHeld = frame.MaxPassed

// Adopt takes over a socket from a child or an agent; it owns f from then on. It refuses what Check refuses. It closes
// a socket that is not requested: its clients would wait, and no process would accept.
func (k *Keeper[S]) Adopt(s S, f *os.File) error {
	if err := k.Check(s, f); err != nil {
		return errors.Join(err, f.Close())
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held[s] != nil || k.want != nil && !k.want[s] || len(k.held) >= MaxHeld {
		return f.Close()
	}
	k.put(s, f)
	return nil
}

// AdoptAll takes over the sockets of a frame, and closes descriptors that the frame does not name.
func (k *Keeper[S]) AdoptAll(list []S, files []*os.File) error {
	var errs []error
	for i, f := range files {
		if i >= len(list) {
			errs = append(errs, f.Close())
			continue
		}
		if err := k.Adopt(list[i], f); err != nil {
			errs = append(errs, fmt.Errorf("socket %v: %w", list[i], err))
		}
	}
	return errors.Join(errs...)
}

// ListensTCP checks that a descriptor is a TCP socket that listens at an address.
func ListensTCP(f *os.File, want netip.AddrPort) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var local unix.Sockaddr
	var accepts, proto int
	var inner error
	err = raw.Control(func(fd uintptr) {
		if local, inner = unix.Getsockname(int(fd)); inner != nil {
			return
		}
		if accepts, inner = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN); inner != nil {
			return
		}
		proto, inner = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
	})
	if err := errors.Join(err, inner); err != nil {
		return err
	}
	var got netip.AddrPort
	switch a := local.(type) {
	case *unix.SockaddrInet4:
		got = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		got = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	if accepts == 0 || proto != unix.IPPROTO_TCP || got.Addr().Unmap() != want.Addr().Unmap() ||
		got.Port() != want.Port() {
		return fmt.Errorf("the descriptor is not a socket that listens at %s", want)
	}
	return nil
}

// Keep closes the sockets that are not in the list, and adopts none of them later.
func (k *Keeper[S]) Keep(list []S) {
	want := Held(list)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.want = want
	for s, f := range k.held {
		if !want[s] {
			_ = f.Close()
			delete(k.held, s)
		}
	}
}

// Sockets returns the sockets that it holds, in no order.
func (k *Keeper[S]) Sockets() []S {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Keys(k.held))
}

// copies returns all sockets, for another agent.
func (k *Keeper[S]) copies() (list []S, files []*os.File) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for s, f := range k.held {
		if len(files) == frame.MaxPassed {
			break
		}
		d, err := duplicate(f)
		if err != nil {
			k.Log.Warn("cannot copy a socket", "socket", s, "err", err)
			continue
		}
		list, files = append(list, s), append(files, d)
	}
	return list, files
}

// Inherit takes over the sockets of another agent of the node. If there is none, that is not an error.
func (k *Keeper[S]) Inherit(ctx context.Context) error {
	if k.Path == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", k.Path)
	if err != nil {
		return nil
	}
	defer conn.Close()
	if t, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(t)
	}
	c := conn.(*net.UnixConn)
	if err := frame.ByAgent(c); err != nil {
		return fmt.Errorf("sockets of the other agent: %w", err)
	}
	var l Listening[S]
	files, err := frame.Receive(c, &l)
	if err != nil {
		return fmt.Errorf("sockets of the other agent: %w", err)
	}
	return k.AdoptAll(l.Passed, files)
}

// Serve inherits, and then passes the sockets to each agent that asks, until ctx ends. If a later agent has died, this
// one serves them again: otherwise the next agent would find none.
func (k *Keeper[S]) Serve(ctx context.Context) error {
	if err := k.Inherit(ctx); err != nil {
		k.Log.Warn("cannot take over all sockets", "err", err)
	}
	for {
		l, err := k.listen()
		if err != nil {
			return fmt.Errorf("hand-over of sockets: %w", err)
		}
		k.setSucceeded(false)
		done := make(chan error, 1)
		go func() { done <- k.accept(l) }()
		err = k.replaced(ctx, l, done)
		_ = l.Close()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("hand-over of sockets: %w", err)
		}
		k.Log.Warn("the agent that took over the sockets is gone; serving them again")
	}
}

// listen binds the path, and replaces an earlier agent's socket.
func (k *Keeper[S]) listen() (*net.UnixListener, error) {
	for try := 0; ; try++ {
		if err := os.Remove(k.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: k.Path})
		if errors.Is(err, unix.EADDRINUSE) && try < 3 {
			continue // the other agent bound it at this moment
		}
		if err != nil {
			return nil, err
		}
		l.SetUnlinkOnClose(false) // by then it may be the next agent's
		if err := os.Chmod(k.Path, 0o600); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		return l, nil
	}
}

// accept passes the sockets to each agent that asks, until the listener is closed.
func (k *Keeper[S]) accept(l *net.UnixListener) error {
	for {
		c, err := frame.Accept(context.Background(), l)
		if err != nil {
			return err
		}
		if err := k.give(c); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.EPIPE) {
			k.Log.Warn("cannot hand over sockets", "err", err)
		}
	}
}

// Interval and number of consecutive failed checks before the path is bound again: a starting agent does not answer for
// a moment.
const (
	lookEvery = 300 * time.Millisecond
	absences  = 4
)

// replaced returns nil when another agent has bound the path and ended.
func (k *Keeper[S]) replaced(ctx context.Context, l *net.UnixListener, done <-chan error) error {
	own, err := os.Stat(k.Path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for missed := 0; missed < absences; {
		select {
		case <-ctx.Done():
			return nil
		case err := <-done:
			return err
		case <-tick.C:
		}
		now, err := os.Stat(k.Path)
		// Inode numbers are reused.
		if own != nil && err == nil && os.SameFile(own, now) && own.ModTime().Equal(now.ModTime()) {
			missed = 0
			k.setSucceeded(false)
			continue
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", k.Path)
		if err == nil {
			_ = c.Close()
			missed = 0
			k.setSucceeded(true)
			continue
		}
		missed++
	}
	return nil
}

func (k *Keeper[S]) setSucceeded(yes bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.succeeded = yes
}

func (k *Keeper[S]) give(c *net.UnixConn) error {
	defer c.Close()
	uid, err := frame.PeerUID(c)
	if err != nil {
		return err
	}
	if uid != uint32(os.Getuid()) {
		return fmt.Errorf("user %d may not take the sockets over", uid)
	}
	list, files := k.copies()
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err := c.SetWriteDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	return frame.Send(c, Listening[S]{All: list, Passed: list}, files)
}
