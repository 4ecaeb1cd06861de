// Package child runs this program again as a process with fewer rights than the agent. The process receives all of its
// state over one socket, and ends with that socket.
package child

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/logging"
)

// socketFD is the child's end of the socket.
const socketFD = 3

// Process is a child that was started.
type Process struct {
	// Conn is the agent's end. Closing it tells the child to end.
	Conn *net.UnixConn

	cmd  *exec.Cmd
	done chan struct{}
	err  error // when done is closed
}

// Start runs this program with arguments. Its logs go to this process's standard error. memory is the limit of its Go
// runtime in bytes (GOMEMLIMIT): it shares the container's memory with the agent. The child's log follows the settings
// of logs, which may be nil.
func Start(memory int64, logs *logging.Log, args ...string) (*Process, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket for a child: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "child")
	defer theirs.Close()
	conn, err := connOf(fds[0])
	if err != nil {
		return nil, err
	}
	settings, unfollow, err := logs.Pipe()
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer settings.Close()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("GOMEMLIMIT=%d", memory))
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs, settings}, os.Stderr
	if err := cmd.Start(); err != nil {
		unfollow()
		conn.Close()
		return nil, fmt.Errorf("start a child: %w", err)
	}
	p := &Process{Conn: conn, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		unfollow()
		close(p.done)
	}()
	return p, nil
}

// PID is the child's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the child has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends the child, also a stopped one, and waits until it has ended.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // an error means that it has ended
	<-p.done
	_ = p.Conn.Close()
}

// End closes the socket and waits until the child ends. When ctx ends first, it kills the child.
func (p *Process) End(ctx context.Context) error {
	_ = p.Conn.Close()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("child %d did not end by itself: %w", p.PID(), ctx.Err())
	}
}

// Main is the main function of a child: it drops all rights but keep, verifies that, and only then runs with the socket
// to its parent and its log. name is in each line of the log.
func Main(name string, run func(*net.UnixConn, *slog.Logger) error, keep ...Capability) error {
	if err := Confine(keep...); err != nil {
		return err
	}
	// It ends when its socket does, not on a signal to the agent's process group.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	conn, err := Parent()
	if err != nil {
		return err
	}
	return run(conn, logging.OfParent(os.Stderr, name))
}

// The wait before a child is restarted doubles from firstWait to lastWait. It is reset for a child that ran for longer
// than steady.
const (
	firstWait = 50 * time.Millisecond
	lastWait  = 5 * time.Second
	steady    = time.Minute
)

// Keep calls once, which runs a child to its end, repeatedly until the context ends. ended is called after each child
// with its error. Keep returns the last error.
func Keep(ctx context.Context, once func(context.Context) error, ended func(error)) error {
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		start := time.Now()
		err := once(ctx)
		ended(err)
		if ctx.Err() != nil {
			return err
		}
		if time.Since(start) > steady {
			wait = firstWait
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// Parent returns the child's end of the socket. Call it once.
func Parent() (*net.UnixConn, error) {
	unix.CloseOnExec(socketFD)
	return connOf(socketFD)
}

func connOf(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close() // FileConn made a copy
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket between agent and child: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %d is %T, want a unix socket; this is a process that the agent starts", fd,
			c)
	}
	return u, nil
}

// within bounds the wait for an end.
const within = 2 * time.Second

// EndSoon is End within two seconds.
func (p *Process) EndSoon() error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return p.End(ctx)
}
