package sockets

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

const patience = 10 * time.Second

// rig is the namespace of a pod that has the backends as well.
type rig struct {
	*Kernel
	ns *testnet.NS
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{&Kernel{Cgroup: testnet.Cgroup(t), Folder: testnet.BPFFS(t) + "/wayleave"}, testnet.New(t, "pod")}
	r.ns.Enter(r.Cgroup)
	for _, a := range []string{"10.244.1.2/32", "10.244.1.3/32", "fd00:244::2/128"} {
		r.ns.Addr("lo", a)
	}
	if err := r.SetNode(t.Context(), Node{Pods: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"),
		netip.MustParsePrefix("fd00:244::/64")}}); err != nil {
		t.Fatal(err)
	}
	if err := r.Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Remove(t.Context()) })
	return r
}

// known makes the namespace known as a pod's, as any TCP connection of it does.
func (r *rig) known(t *testing.T) {
	t.Helper()
	l := r.ns.Listen("tcp", "10.244.1.2:0")
	c, err := r.ns.Dial("tcp", l.Addr().String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func (r *rig) set(t *testing.T, p model.Protocol, at string, backends ...string) {
	t.Helper()
	f := Frontend{Key: Key{netip.MustParseAddrPort(at), p}}
	for _, b := range backends {
		f.Backends = append(f.Backends, netip.MustParseAddrPort(b))
	}
	for k, err := range r.Set(t.Context(), []Frontend{f}) {
		t.Fatalf("%s: %v", k, err)
	}
}

// A TCP socket of a pod meets the backend, and sees the VIP as its peer.
func TestAStreamMeetsItsBackend(t *testing.T) {
	r := newRig(t)
	r.known(t)
	for vip, backend := range map[string]string{"10.96.0.1:80": "10.244.1.2:8080",
		"[fd00:96::1]:80": "[fd00:244::2]:8080"} {
		r.ns.Serve("tcp", backend, func(c net.Conn) { fmt.Fprint(c, c.LocalAddr()) })
		r.set(t, model.TCP, vip, backend)
		c, err := r.ns.Dial("tcp", vip, patience)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, _ := c.Read(buf)
		if c.RemoteAddr().String() != vip || string(buf[:n]) != backend {
			t.Errorf("connected to %s, answered by %q", c.RemoteAddr(), buf[:n])
		}
		c.Close()
	}
}

// An IPv4 address in an IPv6 socket is the same frontend.
func TestAMappedAddressIsTranslated(t *testing.T) {
	r := newRig(t)
	r.known(t)
	r.ns.Serve("tcp", "10.244.1.2:8080", func(c net.Conn) { fmt.Fprint(c, "hello") })
	r.set(t, model.TCP, "10.96.0.1:80", "10.244.1.2:8080")
	r.ns.Must(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		vip := &unix.SockaddrInet6{Port: 80, Addr: netip.MustParseAddr("::ffff:10.96.0.1").As16()}
		if err := unix.Connect(fd, vip); err != nil {
			return err
		}
		peer, err := unix.Getpeername(fd)
		if p, ok := peer.(*unix.SockaddrInet6); !ok || p.Addr != vip.Addr || p.Port != 80 {
			t.Errorf("the peer is %+v, %v", peer, err)
		}
		return nil
	})
}

// Sockets of other namespaces, bound sockets and connected UDP sockets keep their destination.
func TestOtherSocketsKeepTheirDestination(t *testing.T) {
	r := newRig(t)
	r.ns.Serve("tcp", "10.244.1.2:8080", func(net.Conn) {})
	r.ns.ListenPacket("udp", "10.244.1.2:8080")
	r.set(t, model.TCP, "10.96.0.1:80", "10.244.1.2:8080")
	r.set(t, model.UDP, "10.96.0.1:80", "10.244.1.2:8080")
	if _, err := r.ns.Dial("tcp", "10.96.0.1:80", patience); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("the namespace is not known to be a pod's, and the error is %v", err)
	}
	r.known(t)
	for _, tc := range []struct {
		network, from string
		translated    bool
	}{{"tcp", "", true}, {"tcp", "10.244.1.3:40000", false}, {"udp", "", false}} {
		c, err := r.ns.DialFrom(tc.network, tc.from, "10.96.0.1:80", patience)
		if translated := err == nil; translated != tc.translated || err != nil && !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%s from %q: %v", tc.network, tc.from, err)
		}
		if err == nil {
			c.Close()
		}
	}
	if err := r.SetNode(t.Context(), Node{}); err != nil {
		t.Fatal(err)
	}
	stranger := testnet.New(t, "stranger")
	stranger.Enter(r.Cgroup)
	stranger.Addr("lo", "10.244.1.2/32")
	l := stranger.Listen("tcp", "10.244.1.2:8080")
	for range 2 {
		c, err := stranger.Dial("tcp", l.Addr().String(), patience)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if _, err := stranger.Dial("tcp", "10.96.0.1:80", patience); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("a namespace without an address of a pod: the error is %v", err)
		}
	}
}

// datagrams is a UDP socket that is not connected.
type datagrams struct {
	net.PacketConn
	t *testing.T
}

// ask sends to an address, and returns who answered and what.
func (d datagrams) ask(to string) (from, answer string, err error) {
	d.t.Helper()
	if err := d.SetDeadline(time.Now().Add(patience)); err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.WriteTo([]byte("who?"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); err != nil {
		return "", "", err
	}
	buf := make([]byte, 100)
	n, at, err := d.ReadFrom(buf)
	if err != nil {
		return "", "", err
	}
	return at.String(), string(buf[:n]), nil
}

func (r *rig) answer(t *testing.T, at string) {
	t.Helper()
	u := r.ns.ListenPacket("udp", at)
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(at), from)
		}
	}()
}

// Datagrams of one socket go to one backend, whose answers carry the VIP; they move when it does not serve any more,
// and only then.
func TestDatagramsKeepTheirBackend(t *testing.T) {
	r := newRig(t)
	r.known(t)
	for _, at := range []string{"10.244.1.2:53", "10.244.1.3:53", "[fd00:244::2]:53"} {
		r.answer(t, at)
	}
	const vip = "10.96.0.1:53"
	d := datagrams{r.ns.ListenPacket("udp4", ":0"), t}
	r.set(t, model.UDP, vip, "10.244.1.2:53", "10.244.1.3:53")
	_, first, err := d.ask(vip)
	if err != nil {
		t.Fatal(err)
	}
	other := map[string]string{"10.244.1.2:53": "10.244.1.3:53", "10.244.1.3:53": "10.244.1.2:53"}[first]
	for i := range 20 {
		r.set(t, model.UDP, vip, first, other, fmt.Sprintf("10.244.1.9:%d", i+1))
		if from, answer, err := d.ask(vip); from != vip || answer != first || err != nil {
			t.Fatalf("%s answered as %s, %v; before, it was %s", answer, from, err, first)
		}
	}
	r.set(t, model.UDP, vip, other)
	if from, answer, err := d.ask(vip); from != vip || answer != other || err != nil {
		t.Errorf("%s answered as %s, %v; want %s", answer, from, err, other)
	}
	// What the process sends to a backend itself is answered by the backend.
	if from, _, err := d.ask(other); from != other || err != nil {
		t.Errorf("asked %s itself: answered as %s, %v", other, from, err)
	}
	if from, _, err := d.ask(vip); from != vip || err != nil {
		t.Errorf("then by the VIP again: answered as %s, %v", from, err)
	}
	const vip6 = "[fd00:96::1]:53"
	r.set(t, model.UDP, vip6, "[fd00:244::2]:53")
	d6 := datagrams{r.ns.ListenPacket("udp", "[::]:0"), t}
	for _, at := range []string{vip6, vip} { // the second is mapped
		if from, _, err := d6.ask(at); from != at || err != nil {
			t.Errorf("by an IPv6 socket: %s answered as %s, %v", at, from, err)
		}
	}
}

// A socket that uses more VIPs than it can remember, or two with one backend, leaves the others to rules: answers must
// carry the right VIP.
func TestAmbiguousDatagramsKeepTheirDestination(t *testing.T) {
	r := newRig(t)
	r.known(t)
	for i := range 10 {
		r.answer(t, fmt.Sprintf("10.244.1.2:%d", 5300+i))
		r.set(t, model.UDP, fmt.Sprintf("10.96.0.%d:53", i+1), fmt.Sprintf("10.244.1.2:%d", 5300+i))
	}
	r.set(t, model.UDP, "10.96.0.99:53", "10.244.1.2:5300")
	d := datagrams{r.ns.ListenPacket("udp4", ":0"), t}
	for i := range 10 {
		at := fmt.Sprintf("10.96.0.%d:53", i+1)
		from, _, err := d.ask(at)
		if translated := err == nil && from == at; translated != (i < 8) {
			t.Errorf("VIP %d: %s answered, %v", i, from, err)
		}
		if i == 0 {
			if _, _, err := d.ask("10.96.0.99:53"); !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("a second VIP of one backend: %v", err)
			}
		}
	}
}

// The programs serve while no agent runs, and the next one adopts maps and links.
func TestTheProgramsOutliveTheirAgent(t *testing.T) {
	r := newRig(t)
	r.known(t)
	r.ns.Serve("tcp", "10.244.1.2:8080", func(net.Conn) {})
	r.set(t, model.TCP, "10.96.0.1:80", "10.244.1.2:8080")
	r.loaded.Close()
	if c, err := r.ns.Dial("tcp", "10.96.0.1:80", patience); err != nil {
		t.Fatal(err)
	} else {
		c.Close()
	}
	links := r.links(t)
	next := &Kernel{Cgroup: r.Cgroup, Folder: r.Folder}
	if err := next.Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := r.links(t); !slices.Equal(links, now) {
		t.Errorf("the links are %v, they were %v", now, links)
	}
	list, err := next.Frontends(t.Context())
	if err != nil || len(list) != 1 || list[0].String() != "TCP 10.96.0.1:80 → 10.244.1.2:8080" {
		t.Errorf("adopted %v, %v", list, err)
	}
	r.Kernel = next
}

func (r *rig) links(t *testing.T) (out []link.ID) {
	t.Helper()
	for _, h := range hooks() {
		l, err := link.LoadPinnedLink(r.linkPath(h), nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, info.ID)
		l.Close()
	}
	return out
}

// A program that is detached and pins that are deleted are noticed within a second, and repaired.
func TestForeignChangesAreRepaired(t *testing.T) {
	r := newRig(t)
	r.known(t)
	r.ns.Serve("tcp", "10.244.1.2:8080", func(net.Conn) {})
	r.set(t, model.TCP, "10.96.0.1:80", "10.244.1.2:8080")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	foreign, err := r.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for name, fault := range map[string]func() error{
		"detached": func() error {
			l, err := link.LoadPinnedLink(r.linkPath(hooks()[4]), nil)
			if err != nil {
				return err
			}
			return errors.Join(l.Detach(), l.Close())
		},
		"link unpinned": func() error { return os.Remove(r.linkPath(hooks()[4])) },
		"map unpinned":  func() error { return os.Remove(filepath.Join(r.folder(), "slots")) },
		"all unpinned":  func() error { return os.RemoveAll(r.folder()) },
	} {
		if err := fault(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-foreign:
		case <-time.After(patience):
			t.Fatalf("%s: not noticed", name)
		}
		if err := r.Attach(t.Context()); err != nil || !r.isComplete() {
			t.Errorf("%s: %v; complete: %v", name, err, r.isComplete())
		}
		if c, err := r.ns.Dial("tcp", "10.96.0.1:80", patience); err != nil {
			t.Errorf("%s, after the repair: %v", name, err)
		} else {
			c.Close()
		}
		for len(foreign) > 0 {
			<-foreign
		}
	}
}

// What is removed is gone: folders of every version, and translation.
func TestNothingRemains(t *testing.T) {
	r := newRig(t)
	r.known(t)
	r.ns.Serve("tcp", "10.244.1.2:8080", func(net.Conn) {})
	r.set(t, model.TCP, "10.96.0.1:80", "10.244.1.2:8080")
	if left, err := r.Remains(t.Context()); err != nil || len(left) == 0 {
		t.Errorf("remains: %v, %v", left, err)
	}
	if err := os.Mkdir(filepath.Join(r.Folder, "sockets-0"), 0o700); err != nil {
		t.Fatal(err)
	}
	// An agent that has not attached anything, such as `wayleave uninstall`.
	other := &Kernel{Cgroup: r.Cgroup, Folder: r.Folder}
	if err := other.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := other.Remains(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("remains: %v, %v", left, err)
	}
	if _, err := r.ns.Dial("tcp", "10.96.0.1:80", patience); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("translated: %v", err)
	}
	if _, err := os.Stat(r.Folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder: %v", err)
	}
}

// A map that is full refuses the frontends that do not fit, and only those.
func TestAFullMapRefusesWhatDoesNotFit(t *testing.T) {
	r := newRig(t)
	var list []Frontend
	many := make([]netip.AddrPort, 60000)
	for i := range many {
		many[i] = netip.AddrPortFrom(netip.MustParseAddr("10.244.1.2"), uint16(i+1))
	}
	for i := range 10 {
		list = append(list, Frontend{Key: Key{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 1, byte(i)}), 80),
			model.TCP}, Backends: many})
	}
	bad := r.Set(t.Context(), list)
	for _, err := range bad {
		if !errors.Is(err, ErrFull) {
			t.Errorf("refused by %v", err)
		}
	}
	have, err := r.Frontends(t.Context())
	if err != nil || len(have)+len(bad) != len(list) || len(have) != 8 { // of 524,288 slots
		t.Errorf("%d are there, %d are refused, %v", len(have), len(bad), err)
	}
	for _, f := range have {
		if len(f.Backends) != len(many) {
			t.Errorf("%s has %d backends", f.Key, len(f.Backends))
		}
	}
}

// The node's own namespace is not taken for a pod's, also if it has an address in the pods' network, as a bridge gives
// it.
func TestTheNodeIsNoPod(t *testing.T) {
	r := newRig(t)
	r.NSFD = r.ns.FD()
	if err := r.Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.known(t)
	r.ns.Serve("tcp", "10.244.1.2:8080", func(net.Conn) {})
	r.set(t, model.TCP, "10.96.0.1:80", "10.244.1.2:8080")
	if _, err := r.ns.Dial("tcp", "10.96.0.1:80", patience); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("the error is %v", err)
	}
}

// Pinned maps that the programs cannot use are made anew.
func TestMapsThatDoNotFitAreMadeAnew(t *testing.T) {
	k := &Kernel{Cgroup: testnet.Cgroup(t), Folder: testnet.BPFFS(t) + "/wayleave"}
	if err := os.MkdirAll(k.folder(), 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "slots", Type: ebpf.Hash, KeySize: 8, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(filepath.Join(k.folder(), "slots")); err != nil {
		t.Fatal(err)
	}
	if err := k.Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list, err := k.Frontends(t.Context()); err != nil || len(list) > 0 || !k.isComplete() {
		t.Errorf("%v, %v", list, err)
	}
	if err := k.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// Generations start again after the last one, and no two frontends have the same.
func TestGenerationsAreUnique(t *testing.T) {
	r := newRig(t)
	r.set(t, model.TCP, "10.96.0.1:80", "10.244.1.2:8080")
	r.next = math.MaxUint32
	for i := range 3 {
		r.set(t, model.TCP, fmt.Sprintf("10.96.1.%d:80", i), fmt.Sprintf("10.244.1.2:%d", 9000+i))
	}
	list, err := r.Frontends(t.Context())
	if err != nil || len(list) != 4 {
		t.Fatal(list, err)
	}
	for _, f := range list {
		if len(f.Backends) != 1 {
			t.Errorf("%s", f)
		}
	}
}

// However many namespaces use addresses of pods, a pod whose place was taken is known again with its next connection.
func TestNamespacesAreLearnedAgain(t *testing.T) {
	r := newRig(t)
	r.known(t)
	r.ns.Serve("tcp", "10.244.1.2:8080", func(net.Conn) {})
	r.set(t, model.TCP, "10.96.0.1:80", "10.244.1.2:8080")
	places := r.loaded.Maps["namespaces"]
	for i := range uint64(20000) {
		if err := places.Put(i+1<<40, uint32(1)); err != nil {
			t.Fatal(err)
		}
	}
	// Which places the kernel takes depends on the CPUs, so the rest of the old ones is taken here.
	var old []uint64
	var cookie uint64
	var known uint32
	for all := places.Iterate(); all.Next(&cookie, &known); {
		if cookie < 1<<40 {
			old = append(old, cookie)
		}
	}
	for _, cookie := range old {
		if err := places.Delete(cookie); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.ns.Dial("tcp", "10.96.0.1:80", patience); !errors.Is(err, unix.ENETUNREACH) {
		t.Fatalf("the namespace has kept its place: %v", err)
	}
	r.known(t)
	c, err := r.ns.Dial("tcp", "10.96.0.1:80", patience)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// What is missing is named.
func TestAMissingPartIsNamed(t *testing.T) {
	r := newRig(t)
	if err := r.Possible(); err != nil {
		t.Error(err)
	}
	for want, k := range map[string]*Kernel{
		"is not a cgroup of version 2":  {Cgroup: t.TempDir(), Folder: r.Folder},
		"is not in a BPF file system":   {Cgroup: r.Cgroup, Folder: t.TempDir()},
		"mount -t bpf bpf /sys/fs/bpf:": {Cgroup: r.Cgroup, Folder: "/nowhere/bpf/wayleave"},
	} {
		if err := k.Possible(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want %q", err, want)
		}
	}
}
