package l2

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// joinAgain is the wait before what could not be joined is tried again.
const joinAgain = time.Second

// joiner keeps memberships in a goroutine of its own: each waits for a lock of the kernel that
// makers of interfaces may hold for long, and answering must not.
type joiner struct {
	mu   sync.Mutex
	want map[groupOn]bool
	err  error
	wake chan struct{}
	end  chan struct{}
	done chan struct{}
}

func (j *joiner) start() {
	j.wake, j.end, j.done = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go j.run()
}

func (j *joiner) set(want map[groupOn]bool) {
	j.mu.Lock()
	j.want = want
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

func (j *joiner) problem() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

func (j *joiner) close() {
	close(j.end)
	<-j.done
}

func (j *joiner) run() {
	defer close(j.done)
	var g groups
	defer g.close()
	for {
		j.mu.Lock()
		want := j.want
		j.mu.Unlock()
		err := g.set(want)
		j.mu.Lock()
		j.err = err
		j.mu.Unlock()
		var again <-chan time.Time
		if err != nil {
			again = time.After(joinAgain)
		}
		select {
		case <-j.wake:
		case <-again:
		case <-j.end:
			return
		}
	}
}

// groups joins the groups in which solicitations for addresses are sent. The kernel tells
// switches (MLD), and lets the interface hear the group's frames.
type groups struct {
	joined map[groupOn]int // the socket that holds the membership
	fds    []int
}

type groupOn struct {
	group [16]byte
	index int
}

// set makes the memberships exactly want. Those that fail are named in the error, and
// tried again at the next call.
func (g *groups) set(want map[groupOn]bool) error {
	var errs []error
	for m, fd := range g.joined {
		if want[m] {
			continue
		}
		// An error says that the interface is gone, and the membership with it.
		_ = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_LEAVE_GROUP, m.request())
		delete(g.joined, m)
	}
	for m := range want {
		if _, ok := g.joined[m]; ok {
			continue
		}
		if err := g.join(m); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (m groupOn) request() *unix.IPv6Mreq {
	return &unix.IPv6Mreq{Multiaddr: m.group, Interface: uint32(m.index)}
}

func (g *groups) join(m groupOn) error {
	if g.joined == nil {
		g.joined = map[groupOn]int{}
	}
	for _, fresh := range []bool{false, true} {
		// A socket holds a few hundred memberships (net.core.optmem_max).
		if fresh || len(g.fds) == 0 {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("socket for groups: %w", err)
			}
			g.fds = append(g.fds, fd)
		}
		fd := g.fds[len(g.fds)-1]
		err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, m.request())
		if err == nil || errors.Is(err, unix.EADDRINUSE) {
			g.joined[m] = fd
			return nil
		}
		if fresh || (!errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ENOBUFS)) {
			return fmt.Errorf("join %s at interface %d: %w", net.IP(m.group[:]), m.index, err)
		}
	}
	return nil
}

func (g *groups) close() {
	for _, fd := range g.fds {
		_ = unix.Close(fd)
	}
	g.fds, g.joined = nil, nil
}
