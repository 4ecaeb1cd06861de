package wireguard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/child"
	"wayleave.dev/internal/frame"
	"wayleave.dev/internal/logging"
	"wayleave.dev/kernel/namespace"
	"wayleave.dev/podnetwork/wireguard/frames"
)

// Memory is the limit of the Go runtime of a process, in bytes.
const Memory = 256 << 20

// User is the Net of processes in user space: one for each device. A process ends with its device and not with the
// agent, whose successor finds it by its socket.
type User struct {
	// Dir is the folder of the sockets. Args start a process of this program. Logs may be nil.
	Dir  string
	Args []string
	Logs *logging.Log

	links   *links
	changed chan struct{}

	mu      sync.Mutex
	before  map[string]Config
	started map[string]attempt
	watched map[string]bool
}

// attempt is when a process was started last, and how long the next start waits.
type attempt struct {
	at   time.Time
	wait time.Duration
}

var _ Net = (*User)(nil)

// NewUser works in the namespace of a descriptor; 0 is that of the process. sysctl is a writable mount of
// /proc/sys/net.
func NewUser(nsfd int, sysctl, dir string, logs *logging.Log, args ...string) (*User, error) {
	l, err := newLinks(nsfd, sysctl)
	if err != nil {
		return nil, err
	}
	return &User{Dir: dir, Args: args, Logs: logs, links: l, changed: make(chan struct{}, 1),
		before: map[string]Config{}, started: map[string]attempt{}, watched: map[string]bool{}}, nil
}

// Kind implements Net.
func (u *User) Kind() string { return "user space" }

// Changed implements Net: a process has ended.
func (u *User) Changed() <-chan struct{} { return u.changed }

func (u *User) socket(name string) string { return filepath.Join(u.Dir, name+".sock") }

// Get implements Net.
func (u *User) Get(ctx context.Context, name string) (*State, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.get(ctx, name)
}

// get returns nil where no process serves the device.
func (u *User) get(ctx context.Context, name string) (*State, error) {
	l, err := u.links.find(name)
	if err != nil || l == nil || l.Type() != "tuntap" {
		return nil, err
	}
	answer, err := u.ask(ctx, name, "get=1\n\n")
	if errors.Is(err, errNoProcess) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := parseState(answer)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", name, err)
	}
	s.Index = l.Attrs().Index
	return s, nil
}

var errNoProcess = errors.New("no process serves the device")

// askWithin bounds a question to a process, maxAnswer its answer, in bytes: about 400 for each node.
const (
	askWithin = 5 * time.Second
	maxAnswer = 8 << 20
)

// dial connects to the process of a device.
func (u *User) dial(ctx context.Context, name string) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", u.socket(name))
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return nil, errNoProcess
	}
	if err != nil {
		return nil, fmt.Errorf("process of %s: %w", name, err)
	}
	conn := c.(*net.UnixConn)
	if err := frame.ByAgent(conn); err != nil {
		return nil, errors.Join(fmt.Errorf("process of %s: %w", name, err), conn.Close())
	}
	return conn, nil
}

// ask sends a request of the configuration protocol, and returns the answer without its errno.
func (u *User) ask(ctx context.Context, name, request string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	conn, err := u.dial(ctx, name)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := io.WriteString(conn, request); err != nil {
		return "", fmt.Errorf("process of %s: %w", name, err)
	}
	if err := conn.CloseWrite(); err != nil {
		return "", fmt.Errorf("process of %s: %w", name, err)
	}
	raw, err := io.ReadAll(io.LimitReader(conn, maxAnswer))
	if err != nil {
		return "", fmt.Errorf("process of %s: %w", name, err)
	}
	body, number, ok := cutErrno(string(raw))
	switch {
	case !ok:
		return "", errNoProcess // it ended while it was asked
	case number != 0:
		return "", fmt.Errorf("process of %s: %w", name, unix.Errno(number))
	}
	return body, nil
}

// Set implements Net.
func (u *User) Set(ctx context.Context, c Config) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	have, err := u.get(ctx, c.Name)
	if err != nil {
		return err
	}
	if have == nil {
		if err := u.start(ctx, c); err != nil {
			return err
		}
		if have, err = u.get(ctx, c.Name); err != nil || have == nil {
			return errors.Join(fmt.Errorf("device %s: its process has ended again", c.Name), err)
		}
	}
	if d := differ(*have, c, u.before[c.Name], time.Now()); d != nil {
		if _, err := u.ask(ctx, c.Name, d.text()); err != nil {
			return portTaken(c.Port, err)
		}
	}
	u.before[c.Name] = c
	u.watch(c.Name)
	return u.links.configure(c)
}

// The wait before a process is started again doubles from firstWait to lastWait, and begins anew for one that ran for
// longer than steady.
const (
	firstWait = 50 * time.Millisecond
	lastWait  = 5 * time.Second
	steady    = time.Minute
)

// start runs a process for a device.
func (u *User) start(ctx context.Context, c Config) error {
	last := u.started[c.Name]
	if since := time.Since(last.at); since > steady {
		last.wait = 0
	} else if since < last.wait {
		time.AfterFunc(last.wait-since, u.poke)
		return fmt.Errorf("device %s: its process ended soon after its start; it is started again in %s", c.Name,
			(last.wait - since).Round(time.Millisecond))
	}
	u.started[c.Name] = attempt{time.Now(), min(max(2*last.wait, firstWait), lastWait)}
	if l, err := u.links.find(c.Name); err != nil {
		return err
	} else if l != nil && l.Type() != "tuntap" {
		if err := u.links.remove(c.Name); err != nil { // the kernel's
			return err
		}
	}
	tun, err := openTUN(u.links.nsfd, c.Name)
	if err != nil {
		return err
	}
	defer tun.Close()
	socket, err := u.listen(c.Name)
	if err != nil {
		return err
	}
	defer socket.Close()
	var p *child.Process
	if err := namespace.Do(u.links.nsfd, func() (err error) {
		p, err = child.Start(Memory, u.Logs, u.Args...)
		return err
	}); err != nil {
		return err
	}
	defer p.Conn.Close()
	if err := frame.Send(p.Conn, frames.Hello{Name: c.Name, Port: c.Port}, []*os.File{tun, socket}); err != nil {
		p.Kill()
		return fmt.Errorf("device %s: %w", c.Name, err)
	}
	// The process answers once its device is up.
	_ = p.Conn.SetReadDeadline(time.Now().Add(askWithin))
	var ready frames.Hello
	if _, err := frame.Receive(p.Conn, &ready); err != nil {
		p.Kill()
		return fmt.Errorf("device %s: its process did not start: %w", c.Name, portTaken(c.Port, err))
	}
	return ctx.Err()
}

// listen makes the socket on which a process is configured.
func (u *User) listen(name string) (*os.File, error) {
	path := u.socket(name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket of %s: %w", name, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return nil, fmt.Errorf("socket of %s: %w", name, err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("socket of %s: %w", name, err)
	}
	f, err := l.File()
	if err != nil {
		return nil, fmt.Errorf("socket of %s: %w", name, err)
	}
	return f, nil
}

// watch tells when the process of a device ends: its connection does.
func (u *User) watch(name string) {
	if u.watched[name] {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	conn, err := u.dial(ctx, name)
	if err != nil {
		u.poke()
		return
	}
	u.watched[name] = true
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
		u.mu.Lock()
		delete(u.watched, name)
		u.mu.Unlock()
		u.poke()
	}()
}

func (u *User) poke() {
	select {
	case u.changed <- struct{}{}:
	default:
	}
}

// Remove implements Net: the process ends with its device.
func (u *User) Remove(_ context.Context, name string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.before, name)
	delete(u.started, name)
	err := u.links.remove(name)
	if e := os.Remove(u.socket(name)); e != nil && !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// tunPath is the device of tun links.
const tunPath = "/dev/net/tun"

// openTUN opens a tun device, which stays when the descriptor is closed: packets to it are dropped then.
func openTUN(nsfd int, name string) (*os.File, error) {
	var f *os.File
	err := namespace.Do(nsfd, func() error {
		fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("%s: %w; the kernel has no WireGuard, and a process needs the module tun", tunPath, err)
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return errors.Join(fmt.Errorf("tun device %s: %w", name, err), unix.Close(fd))
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
			return errors.Join(fmt.Errorf("tun device %s: %w", name, err), unix.Close(fd))
		}
		f = os.NewFile(uintptr(fd), tunPath)
		return nil
	})
	return f, err
}
