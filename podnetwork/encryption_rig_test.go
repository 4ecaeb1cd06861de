package podnetwork

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/routes"
	plan "wayleave.dev/podnetwork/wireguard"
	"wayleave.dev/podnetwork/wireguard/frames"
	"wayleave.dev/podnetwork/wireguard/process"
)

// As a child, the test's program is the process that encrypts in user space.
func TestMain(m *testing.M) {
	testnet.Main(m, map[string]func(*slog.Logger) error{
		frames.Process: func(*slog.Logger) error { return process.Main() },
	})
}

// board is where the nodes of a test publish their keys.
type board struct {
	mu      sync.Mutex
	keys    map[string]plan.Published
	hidden  map[string]bool
	readers []*reader
}

type reader struct {
	board   *board
	node    string
	changed chan struct{}
}

func (b *board) reader(node string) *reader {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := &reader{b, node, make(chan struct{}, 1)}
	b.readers = append(b.readers, r)
	return r
}

func (b *board) change(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn()
	for _, r := range b.readers {
		select {
		case r.changed <- struct{}{}:
		default:
		}
	}
}

// hide has a node's keys not be known, and show has them be.
func (b *board) hide(node string) { b.change(func() { b.hidden[node] = true }) }
func (b *board) show(node string) { b.change(func() { delete(b.hidden, node) }) }

func (r *reader) Publish(p plan.Published) {
	if now, _, _ := r.Nodes(); now[r.node] == p {
		return
	}
	r.board.change(func() {
		r.board.keys[r.node] = p
		if p.IsZero() {
			delete(r.board.keys, r.node)
		}
	})
}

func (r *reader) Nodes() (map[string]plan.Published, bool, error) {
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	out := map[string]plan.Published{}
	for node, p := range r.board.keys {
		if !r.board.hidden[node] || node == r.node {
			out[node] = p
		}
	}
	return out, true, nil
}

func (r *reader) Changed() <-chan struct{} { return r.changed }

// encrypted is how the nodes of a test encrypt; set before they start, changed while they are stopped.
type encrypted struct {
	preferred, strict, nodes bool
	period                   time.Duration
	board                    *board
}

func newEncrypted() *encrypted {
	return &encrypted{strict: true, period: time.Hour,
		board: &board{keys: map[string]plan.Published{}, hidden: map[string]bool{}}}
}

// encryption is the part of the configuration of a machine.
func (m *machine) encryption(c *Config) {
	m.t.Helper()
	conn, err := nft.NewKernel(m.ns.FD())
	if err != nil {
		m.t.Fatal(err)
	}
	c.NFT = conn
	e := m.encrypt
	if e == nil {
		return
	}
	kernel, err := wireguard.NewKernel(m.ns.FD(), "")
	if err != nil {
		m.t.Fatal(err)
	}
	var devices wireguard.Net = kernel
	if err := kernel.Probe(); err != nil {
		if m.sockets == "" {
			m.sockets = testnet.ShortDir(m.t)
		}
		if devices, err = wireguard.NewUser(m.ns.FD(), "", m.sockets, nil, frames.Process); err != nil {
			m.t.Fatal(err)
		}
		m.t.Cleanup(func() {
			for i := range plan.Devices {
				_ = devices.Remove(context.Background(), plan.Device(i))
			}
		})
	}
	c.Encryption = Encryption{Preferred: e.preferred, Strict: e.strict, Nodes: e.nodes, Port: 51871, Period: e.period,
		Devices: devices, Keys: e.board.reader(m.name), Linger: 4 * time.Second}
}

// tap reads what passes a node's uplink, and looks for packets between addresses that are not encrypted: in a header of
// IP, the addresses follow each other, wherever in the frame that is.
type tap struct {
	t     *testing.T
	fds   []int
	pairs atomic.Pointer[[][]byte]
	mu    sync.Mutex
	found []string
	total atomic.Int64
}

func newTap(t *testing.T, machines ...*machine) *tap {
	t.Helper()
	w := &tap{t: t}
	w.pairs.Store(&[][]byte{})
	for _, m := range machines {
		m.ns.Must(func() error {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			w.fds = append(w.fds, fd)
			link, err := linkIndex("eth0")
			if err != nil {
				return err
			}
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
			return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link,
				Protocol: binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))})
		})
		go w.read(m.name, w.fds[len(w.fds)-1])
		for _, outside := range []string{"172.30.0.99", "fd00:30::99"} { // something to see
			_, _ = m.ns.Try("ping", "-c1", "-W2", outside)
		}
	}
	t.Cleanup(func() {
		for _, fd := range w.fds {
			_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		}
	})
	return w
}

// watch looks for packets between pods.
func (w *tap) watch(pods ...*pod) {
	var pairs [][]byte
	for _, a := range pods {
		for _, b := range pods {
			for i := range a.ips {
				if a.m != b.m {
					pairs = append(pairs, append(a.ips[i].AsSlice(), b.ips[i].AsSlice()...))
				}
			}
		}
	}
	w.pairs.Store(&pairs)
}

func (w *tap) read(name string, fd int) {
	buf := make([]byte, 1<<17)
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, _ = unix.Poll(poll, 200)
		if w.t.Context().Err() != nil {
			_ = unix.Close(fd)
			return
		}
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			continue
		}
		w.total.Add(1)
		for _, p := range *w.pairs.Load() {
			if i := bytes.Index(buf[:n], p); i >= 0 {
				w.mu.Lock()
				if len(w.found) < 10 {
					w.found = append(w.found, fmt.Sprintf("%s: %x", name, buf[:min(n, i+len(p)+24)]))
				}
				w.mu.Unlock()
			}
		}
	}
}

// expectNone wants no plain packet, and some packets at all.
func (w *tap) expectNone() {
	w.t.Helper()
	time.Sleep(300 * time.Millisecond) // what is queued
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.found) > 0 {
		w.t.Errorf("plain packets of pods on the wire:\n%s", strings.Join(w.found, "\n"))
	}
	if w.total.Load() == 0 {
		w.t.Error("the tap has seen nothing")
	}
}

func linkIndex(name string) (int, error) {
	raw, err := os.ReadFile(filepath.Join("/proc/thread-self/net/dev"))
	if err != nil || !bytes.Contains(raw, []byte(name)) {
		return 0, fmt.Errorf("no link %s: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r); err != nil {
		return 0, err
	}
	return int(r.Uint32()), nil
}

// newEncryptedCluster is two nodes that encrypt.
func newEncryptedCluster(t *testing.T, e *encrypted, mode routes.Mode) *cluster {
	t.Helper()
	return newClusterOf(t, mode, func(m *machine) { m.encrypt = e })
}

// problemsOf is what a node reports now under a key.
func (m *machine) problemsOf(key string) []model.Problem {
	list, _ := m.bad.Load("podnetwork " + key)
	problems, _ := list.([]model.Problem)
	return problems
}

// dropped are the counts that a node's status shows for another one.
func (m *machine) dropped(node string) (plan.Dropped, error) {
	counts, err := m.net.PlainCounts(m.t.Context())
	return counts.Dropped[node], err
}

// awaitSessions waits until all nodes have a session with all others.
func awaitSessions(t *testing.T, nodes []*machine) {
	t.Helper()
	testnet.Eventually(t, 30*time.Second, func() error {
		for _, m := range nodes {
			s := m.net.Encryption()
			if s == nil || len(s.Peers) < len(nodes)-1 {
				return fmt.Errorf("%s does not encrypt yet", m.name)
			}
			for _, p := range s.Peers {
				if p.Handshake.IsZero() || p.Device == "" {
					return fmt.Errorf("%s: %+v", m.name, p)
				}
			}
		}
		return nil
	})
}

// awaitRoutes waits until a pod reaches another.
func awaitRoutes(t *testing.T, from, to *pod) {
	t.Helper()
	tell(to.ns)
	for f := range to.ips {
		expectSeenWithin(t, 20*time.Second, from.ns, to.ips[f], from.ips[f])
	}
}
