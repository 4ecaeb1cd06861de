package feed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/frame"
)

// Keeper has the listening sockets of a node while proxies and agents come and go: it
// gives them to the next agent too. All of them share one queue of connections per
// socket, so none is refused, nor lost when one of them ends.
type Keeper struct {
	// Path is the unix socket that agents of a node hand sockets over by; empty for none.
	Path string
	// Bind opens a socket; nil is OpenSocket.
	Bind func(Socket) (*os.File, error)
	Log  *slog.Logger

	mu   sync.Mutex
	held map[Socket]*os.File
	want map[Socket]bool // nil until Keep: all
}

// OpenSocket binds a listening socket. It does not share its port: one that another
// program has is an error, and not a half of its clients.
func OpenSocket(k Socket) (*os.File, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", k.Addr.String())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

// Open gives a copy of a socket, which is opened when nobody has given it before.
func (k *Keeper) Open(s Socket) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.held[s]
	if f == nil {
		bind := k.Bind
		if bind == nil {
			bind = OpenSocket
		}
		var err error
		if f, err = bind(s); err != nil {
			return nil, err
		}
		k.put(s, f)
	}
	return duplicate(f)
}

func (k *Keeper) put(s Socket, f *os.File) {
	if k.held == nil {
		k.held = map[Socket]*os.File{}
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

// maxHeld bounds the sockets that are adopted: who holds them may be captured.
const maxHeld = frame.MaxPassed

// Adopt takes a socket over from who had it; it owns f from then on. What does not listen
// at that address is refused: it comes from who may not bind. One that is not wanted is
// closed: clients would wait for who never accepts.
func (k *Keeper) Adopt(s Socket, f *os.File) error {
	if err := listens(f, s.Addr); err != nil {
		return errors.Join(err, f.Close())
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held[s] != nil || k.want != nil && !k.want[s] || len(k.held) >= maxHeld {
		return f.Close()
	}
	k.put(s, f)
	return nil
}

// listens checks that a descriptor is a TCP socket that listens at an address.
func listens(f *os.File, want netip.AddrPort) error {
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
		return fmt.Errorf("the descriptor is no socket that listens at %s", want)
	}
	return nil
}

// Keep closes the sockets that are not in the list, and takes no such any more.
func (k *Keeper) Keep(list []Socket) {
	want := make(map[Socket]bool, len(list))
	for _, s := range list {
		want[s] = true
	}
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

// copies are all sockets, for somebody else.
func (k *Keeper) copies() (list []Socket, files []*os.File) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for s, f := range k.held {
		if len(files) == frame.MaxPassed {
			break
		}
		d, err := duplicate(f)
		if err != nil {
			k.Log.Warn("could not copy a socket", "socket", s, "err", err)
			continue
		}
		list, files = append(list, s), append(files, d)
	}
	return list, files
}

// Inherit takes the sockets over that another agent of the node has. None is no error:
// there may be no other.
func (k *Keeper) Inherit(ctx context.Context) error {
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
	var l Listening
	files, err := frame.Receive(c, &l)
	if err != nil {
		return fmt.Errorf("sockets of the other agent: %w", err)
	}
	var errs []error
	for i, f := range files {
		if i >= len(l.Passed) {
			errs = append(errs, f.Close())
			continue
		}
		errs = append(errs, k.Adopt(l.Passed[i], f))
	}
	return errors.Join(errs...)
}

// Serve inherits, then gives the sockets to the next agent that asks, until ctx ends. When
// an agent that came later has died, this one gives them again: else the next would find
// nobody to take them from.
func (k *Keeper) Serve(ctx context.Context) error {
	if err := k.Inherit(ctx); err != nil {
		k.Log.Warn("could not take all sockets over", "err", err)
	}
	for {
		l, err := k.listen()
		if err != nil {
			return fmt.Errorf("hand-over of sockets: %w", err)
		}
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
		k.Log.Warn("the agent that took the sockets over has gone; giving them again")
	}
}

// listen takes the path, from an agent of before if one has it.
func (k *Keeper) listen() (*net.UnixListener, error) {
	for try := 0; ; try++ {
		if err := os.Remove(k.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: k.Path})
		if errors.Is(err, unix.EADDRINUSE) && try < 3 {
			continue // the other agent took it at this moment
		}
		if err != nil {
			return nil, err
		}
		l.SetUnlinkOnClose(false) // the next agent's may be there by then
		if err := os.Chmod(k.Path, 0o600); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		return l, nil
	}
}

// accept gives the sockets to who asks, until the listener is closed.
func (k *Keeper) accept(l *net.UnixListener) error {
	for {
		c, err := frame.Accept(context.Background(), l)
		if err != nil {
			return err
		}
		if err := k.give(c); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.EPIPE) {
			k.Log.Warn("could not hand sockets over", "err", err)
		}
	}
}

// How often, and how many times in a row, nobody must be at the path before it is taken
// back: an agent that comes has none there for a moment.
const (
	lookEvery = 300 * time.Millisecond
	nobody    = 4
)

// replaced returns nil when another agent took the path and is there no more.
func (k *Keeper) replaced(ctx context.Context, l *net.UnixListener, done <-chan error) error {
	own, err := os.Stat(k.Path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for missed := 0; missed < nobody; {
		select {
		case <-ctx.Done():
			return nil
		case err := <-done:
			return err
		case <-tick.C:
		}
		now, err := os.Stat(k.Path)
		// numbers are used again
		if own != nil && err == nil && os.SameFile(own, now) && own.ModTime().Equal(now.ModTime()) {
			missed = 0
			continue
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", k.Path)
		if err == nil {
			_ = c.Close()
			missed = 0
			continue
		}
		missed++
	}
	return nil
}

func (k *Keeper) give(c *net.UnixConn) error {
	defer c.Close()
	uid, err := frame.PeerUID(c)
	if err != nil {
		return err
	}
	if uid != uint32(os.Getuid()) {
		return fmt.Errorf("user %d may not ask", uid)
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
	return frame.Send(c, Listening{All: list, Passed: list}, files)
}
