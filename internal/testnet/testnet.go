// Package testnet builds temporary networks for tests: network namespaces connected by veth pairs, in which real
// packets pass through the real kernel.
//
// Namespaces are anonymous (held by a descriptor, without a name), so nothing is left behind even if the test process
// is killed. Nothing here changes the namespace in which the tests were started.
package testnet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NS is a network namespace.
type NS struct {
	// Name is used only in messages.
	Name string
	file *os.File
	t    testing.TB
	// workers are set by Enter.
	workers atomic.Pointer[workers]
}

// Need fails the test if a program that hack/setup installs is missing. Without root, for which hack/setup installs
// nothing, the test is skipped.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		switch _, err := exec.LookPath(p); {
		case err == nil:
		case os.Geteuid() != 0:
			t.Skipf("%v", err)
		default:
			t.Fatalf("%v; hack/setup installs it", err)
		}
	}
}

// MemoryDir is like t.TempDir, in memory if the machine has a folder for that: a test that writes thousands of state
// files does not wait for the disk.
func MemoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "wayleave-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// ShortDir is like t.TempDir, with a short name for unix sockets: the kernel accepts paths of up to 107 bytes, and
// t.TempDir contains the name of the test.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// New creates an empty namespace with its loopback up. It ends with the test. Without root the test is skipped, with
// the reason.
func New(t testing.TB, name string) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN)")
	}
	n := &NS{Name: name, t: t}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread is never unlocked: it ends with the goroutine instead of returning to the scheduler in the wrong
		// namespace.
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		n.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	}()
	<-done
	if err != nil {
		t.Fatalf("make namespace %s: %v", name, err)
	}
	t.Cleanup(func() { _ = n.file.Close() })
	n.Must(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return n
}

// FD returns the descriptor of the namespace, valid until the test ends.
func (n *NS) FD() int { return int(n.file.Fd()) }

// Path returns a path that opens the namespace while this process runs.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD()) }

// Do runs fn on a thread in the namespace. Sockets that fn opens stay in it; goroutines that fn starts do not.
func (n *NS) Do(fn func() error) error {
	if w := n.workers.Load(); w != nil {
		return w.do(n, fn)
	}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked, see New
		if err = unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter %s: %w", n.Name, err)
			return
		}
		err = fn()
	}()
	<-done
	return err
}

// As runs fn on a thread with another user. Sockets and files that fn opens belong to that user; goroutines that fn
// starts do not run as it.
func As(uid int, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not run other goroutines
		// The function of package syscall changes all threads.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- fmt.Errorf("become user %d: %w", uid, errno)
			return
		}
		done <- fn()
	}()
	return <-done
}

// Open returns a folder that all users may write, until the test ends: the parents of t.TempDir are closed to them.
func Open(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "open")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Must is Do; an error fails the test.
func (n *NS) Must(fn func() error) {
	n.t.Helper()
	if err := n.Do(fn); err != nil {
		n.t.Fatalf("in %s: %v", n.Name, err)
	}
}

// Run runs a program in the namespace and returns its output; if the program fails, the test fails.
func (n *NS) Run(name string, args ...string) string {
	n.t.Helper()
	out, err := n.Try(name, args...)
	if err != nil {
		n.t.Fatalf("in %s: %v", n.Name, err)
	}
	return out
}

// Try runs a program in the namespace.
func (n *NS) Try(name string, args ...string) (string, error) {
	var out []byte
	err := n.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		var err error
		if out, err = exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		return nil
	})
	return string(out), err
}

// Sysctl sets a value below /proc/sys, for example "net/ipv4/ip_forward".
func (n *NS) Sysctl(name, value string) {
	n.t.Helper()
	n.Must(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
	})
}

// Router enables forwarding for both families in the namespace.
func (n *NS) Router() {
	n.t.Helper()
	n.Sysctl("net/ipv4/ip_forward", "1")
	n.Sysctl("net/ipv6/conf/all/forwarding", "1")
}

// Veth joins two namespaces by a pair of interfaces, both up; IPv6 addresses are usable at once (no duplicate address
// detection).
func Veth(a *NS, aName string, b *NS, bName string) {
	a.t.Helper()
	a.Must(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: aName},
			PeerName:      bName,
			PeerNamespace: netlink.NsFd(b.FD()),
		})
	})
	a.up(aName)
	b.up(bName)
}

func (n *NS) up(link string) {
	n.t.Helper()
	n.Must(func() error {
		_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", link, "accept_dad"), []byte("0"), 0)
		l, err := netlink.LinkByName(link)
		if err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
		return netlink.LinkSetUp(l)
	})
}

// Bridge makes the namespace a switch: it returns a function that attaches one of its interfaces.
func (n *NS) Bridge(name string) (plug func(link string)) {
	n.t.Helper()
	n.Must(func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}) })
	n.up(name)
	return func(link string) {
		n.t.Helper()
		n.Must(func() error {
			bridge, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			port, err := netlink.LinkByName(link)
			if err != nil {
				return err
			}
			return netlink.LinkSetMaster(port, bridge)
		})
	}
}

// Addr adds an address, "10.0.0.1/24", to an interface, and waits until packets to it are accepted.
func (n *NS) Addr(link, prefix string) {
	n.t.Helper()
	n.Must(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
		addr, err := netlink.ParseAddr(prefix)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
		return awaitLocal(l, addr.IP)
	})
}

// awaitLocal waits until an IPv6 address of an interface that is up is local: the kernel adds the local route from a
// work queue, a moment after the address, also without duplicate address detection. An interface whose peer is down is
// not waited for.
func awaitLocal(l netlink.Link, ip net.IP) error {
	if ip.To4() != nil || l.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 || l.Attrs().Flags&net.FlagUp == 0 {
		return nil
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(ip)
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("address %s is not local after 30 s: %v, %w", ip, routes, err)
		}
	}
}

// Route adds a route to a prefix via a gateway; "0.0.0.0/0" and "::/0" are the
// default routes.
func (n *NS) Route(prefix, via string) {
	n.t.Helper()
	n.Must(func() error {
		_, dst, err := net.ParseCIDR(prefix)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)})
	})
}

// ForgetFlows flushes connection tracking: a reused client port would match an earlier flow.
func (n *NS) ForgetFlows() {
	n.t.Helper()
	n.Must(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// Dial connects from the namespace.
func (n *NS) Dial(network, addr string, timeout time.Duration) (net.Conn, error) {
	return n.DialFrom(network, "", addr, timeout)
}

// DialFrom connects from the namespace with a local "ip:port", or any for "".
func (n *NS) DialFrom(network, from, addr string, timeout time.Duration) (net.Conn, error) {
	var conn net.Conn
	err := n.Do(func() error {
		d := net.Dialer{Timeout: timeout}
		if from != "" {
			ap, err := netip.ParseAddrPort(from)
			if err != nil {
				return err
			}
			d.LocalAddr = net.TCPAddrFromAddrPort(ap)
			if strings.HasPrefix(network, "udp") {
				d.LocalAddr = net.UDPAddrFromAddrPort(ap)
			}
		}
		var err error
		conn, err = d.Dial(network, addr)
		return err
	})
	return conn, err
}

// Tun creates a link of the namespace with an address, whose packets are read and written here, one at a time, without
// a header. It ends with the test.
func (n *NS) Tun(address string) io.ReadWriter {
	n.t.Helper()
	var f *os.File
	n.Must(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq("tun0")
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		f = os.NewFile(uintptr(fd), "tun")
		return err
	})
	n.t.Cleanup(func() { _ = f.Close() })
	n.Run("ip", "address", "add", address, "dev", "tun0")
	n.Run("ip", "link", "set", "tun0", "up")
	return f
}

// Listen opens a stream listener in the namespace, closed with the test.
func (n *NS) Listen(network, addr string) net.Listener {
	n.t.Helper()
	var l net.Listener
	n.Must(func() (err error) { l, err = net.Listen(network, addr); return err })
	n.t.Cleanup(func() { _ = l.Close() })
	return l
}

// Serve runs fn for every connection to a listener in the namespace, and closes it
// after that. The listener is closed with the test.
func (n *NS) Serve(network, addr string, fn func(net.Conn)) net.Listener {
	n.t.Helper()
	l := n.Listen(network, addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fn(c)
			}()
		}
	}()
	return l
}

// ListenPacket opens a datagram socket in the namespace, closed with the test.
func (n *NS) ListenPacket(network, addr string) net.PacketConn {
	n.t.Helper()
	var c net.PacketConn
	n.Must(func() (err error) { c, err = net.ListenPacket(network, addr); return err })
	n.t.Cleanup(func() { _ = c.Close() })
	return c
}

// Eventually waits until fn returns no error, failing the test with the last
// one at the deadline.
func Eventually(t testing.TB, within time.Duration, fn func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TCP returns the two ends of a connection over the test's own loopback, closed when the test ends.
func TCP(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}
