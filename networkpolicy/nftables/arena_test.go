package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/iptables"
	"wayleave.dev/kernel/ipvs"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	"wayleave.dev/networkpolicy/world"
	"wayleave.dev/service"
	serviceiptables "wayleave.dev/service/iptables"
	serviceipvs "wayleave.dev/service/ipvs"
	servicenftables "wayleave.dev/service/nftables"
)

// arena is the small world in a kernel: every pod is a namespace, at one node. A probe is
// one packet with a number, sent by hand; a tap on each pod's link sees which arrive. When
// all that was sent has been through the kernel follows from packets that are sent after
// it by the node, which pass always. So nobody waits for what does not come.
type arena struct {
	t     testing.TB
	node  *arenaEnd
	ends  []*arenaEnd // as world.Names
	conn  *nft.Kernel
	store *model.Store

	watch   *model.Watcher
	planner *networkpolicy.Planner
	entries map[entryKey]entry
	mode    *Mode
	// sport is the source port of packets.
	sport uint16

	// want says for each number that was sent whether it may arrive; got where it did.
	want []bool
	got  map[uint32]int
}

type arenaEnd struct {
	*testnet.NS
	addrs    [2]netip.Addr
	raw      [2]int // sockets to send by, IPv4 and IPv6
	tap      int
	barriers map[uint32]bool
}

// shot is a packet to send; by a VIP it goes to the Service whose endpoint the pod is.
type shot struct {
	world.Probe
	byVIP bool
}

func (s shot) String() string {
	if s.byVIP {
		return s.Probe.String() + ", by a ClusterIP"
	}
	return s.Probe.String()
}

const icmp = model.Protocol(1)

func newArena(t testing.TB) *arena {
	t.Helper()
	a := &arena{t: t, entries: map[entryKey]entry{}, got: map[uint32]int{}, want: []bool{true}, sport: 40000}
	a.node = &arenaEnd{NS: testnet.New(t, "node"), addrs: [2]netip.Addr{nodeAddr(false), nodeAddr(true)}}
	a.node.Router()
	for i, name := range world.Names() {
		a.end(i, name)
	}
	a.node.Run("ip", "addr", "add", "172.30.0.1/32", "dev", "lo")
	a.node.Run("ip", "addr", "add", "fd00:30::1/128", "dev", "lo")
	a.sockets(a.node)
	var err error
	if a.conn, err = nft.NewKernel(a.node.FD()); err != nil {
		t.Fatal(err)
	}
	if a.store, err = model.NewStore(); err != nil {
		t.Fatal(err)
	}
	if a.watch, err = a.store.Watch(networkpolicy.PlannerKinds); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.watch.Close(); _ = a.store.Close() })
	a.begin(a.conn)
	return a
}

// begin has a new mode and a new planner.
func (a *arena) begin(conn nft.Conn) {
	a.mode = New(conn, conntrack.NewTracker(a.node.FD()))
	a.planner = networkpolicy.NewPlanner(world.Local())
}

// end makes the i-th end. Neighbours are known for good: no packet waits for an answer,
// and none is lost by it. The namespace answers nothing.
func (a *arena) end(i int, name string) {
	e := &arenaEnd{NS: testnet.New(a.t, name), addrs: [2]netip.Addr{world.Addr(name, false), world.Addr(name, true)},
		barriers: map[uint32]bool{}}
	link := fmt.Sprintf("p%d", i)
	testnet.Veth(e.NS, "eth0", a.node.NS, link)
	mac := func(n *testnet.NS, link string) (out net.HardwareAddr, index int) {
		n.Must(func() error {
			l, err := netlink.LinkByName(link)
			if err == nil {
				out, index = l.Attrs().HardwareAddr, l.Attrs().Index
			}
			return err
		})
		return out, index
	}
	podMAC, eth0 := mac(e.NS, "eth0")
	nodeMAC, _ := mac(a.node.NS, link)
	gateways := [2]string{"169.254.1.1", "fe80::1"}
	for j, addr := range e.addrs {
		family := []string{"-4", "-6"}[j]
		bits := fmt.Sprintf("%s/%d", addr, addr.BitLen())
		if j == 0 {
			e.Addr("eth0", bits)
			e.Run("ip", "route", "add", gateways[j], "dev", "eth0")
		} else {
			e.Addr("eth0", bits)
		}
		e.Run("ip", "neigh", "add", gateways[j], "lladdr", nodeMAC.String(), "dev", "eth0", "nud", "permanent")
		e.Run("ip", family, "route", "add", "default", "via", gateways[j], "dev", "eth0")
		a.node.Run("ip", family, "route", "add", bits, "dev", link)
		a.node.Run("ip", "neigh", "add", addr.String(), "lladdr", podMAC.String(), "dev", link, "nud", "permanent")
	}
	e.Run("nft", "add table inet quiet; add chain inet quiet in { type filter hook input priority 0; policy drop; }")
	a.sockets(e)
	e.Must(func() (err error) {
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if e.tap, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC,
			0); err != nil {
			return err
		}
		a.t.Cleanup(func() { _ = unix.Close(e.tap) })
		return errors.Join(unix.SetsockoptInt(e.tap, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20),
			unix.SetsockoptInt(e.tap, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(e.tap, &unix.SockaddrLinklayer{Protocol: all, Ifindex: eth0}))
	})
	a.ends = append(a.ends, e)
}

func (a *arena) sockets(e *arenaEnd) {
	e.Must(func() (err error) {
		for i, family := range []int{unix.AF_INET, unix.AF_INET6} {
			if e.raw[i], err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
				return err
			}
			fd := e.raw[i]
			a.t.Cleanup(func() { _ = unix.Close(fd) })
		}
		return nil
	})
}

// follow has the mode hold what the store says, by what has changed since the last time.
func (a *arena) follow() error {
	snap, changes, _ := a.watch.Poll()
	set, del := map[entryKey]entry{}, []entryKey{}
	for _, k := range a.planner.Keys(snap, changes) {
		e, ok, _ := a.planner.Plan(snap, k)
		old, had := a.entries[k]
		switch {
		case ok && had && old.Equal(e):
		case ok:
			a.entries[k], set[k] = e, e
		case had:
			delete(a.entries, k)
			del = append(del, k)
		}
	}
	if len(set)+len(del) == 0 && a.mode.program.Synced() {
		return nil
	}
	if !a.mode.program.Synced() {
		return a.mode.Sync(a.t.Context(), maps.Clone(a.entries))
	}
	return a.mode.Apply(a.t.Context(), set, del)
}

// services puts a Service before each pod, in a mode of the service proxy.
func (a *arena) services(mode string) {
	a.t.Helper()
	track, err := conntrack.NewKernel(a.node.FD())
	if err != nil {
		a.t.Fatal(err)
	}
	m := a.serviceMode(mode, track)
	pods := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/48")}
	m.SetNodeFacts(service.NodeFacts{NodeIPs: a.node.addrs[:], PodCIDRs: pods, OwnPodCIDRs: pods})
	plans := map[model.Name]service.Plan{}
	store, err := model.NewStore()
	if err != nil {
		a.t.Fatal(err)
	}
	defer store.Close()
	err = store.Write(func(w *model.Writer) {
		w.PutNode(&model.Node{Name: world.Node, InternalIPs: a.node.addrs[:], PodCIDRs: pods, Ready: true})
		for i := range world.Names()[:len(a.ends)-1] {
			a.service(w, i)
		}
	})
	if err != nil {
		a.t.Fatal(err)
	}
	snap := store.Snapshot()
	for s := range snap.Services() {
		if p, ok, _ := service.Make(snap, s.Name, world.Node); ok {
			plans[s.Name] = p
		}
	}
	if err := m.Sync(a.t.Context(), plans); err != nil {
		a.t.Fatal(err)
	}
}

// serviceMode is a mode of the service proxy by name.
func (a *arena) serviceMode(mode string, track *conntrack.Kernel) service.Mode {
	a.t.Helper()
	switch mode {
	case "iptables-nft", "iptables-legacy":
		testnet.Need(a.t, mode)
		conn, err := iptables.NewKernel(a.node.FD(), iptables.Flavour(strings.TrimPrefix(mode, "iptables-")))
		if err != nil {
			a.t.Fatal(err)
		}
		conn.LockFile = a.t.TempDir() + "/xtables.lock"
		return serviceiptables.New(conn, track)
	case "ipvs":
		conn, err := ipvs.NewKernel(a.node.FD())
		if err != nil {
			a.t.Skipf("this kernel has no ip_vs (make test-vm has): %v", err)
		}
		for name, value := range serviceipvs.Sysctls() {
			a.node.Sysctl("net/"+name, value)
		}
		return serviceipvs.New(conn, servicenftables.NewIPVSCompanion(a.conn, track, nil), track,
			serviceipvs.Options{Scheduler: "rr", Drain: time.Minute})
	}
	return servicenftables.New(a.conn, track)
}

func arenaVIP(i int, is6 bool) netip.Addr {
	if is6 {
		return addr(fmt.Sprintf("fd00:96::%d", i+1))
	}
	return addr(fmt.Sprintf("10.96.0.%d", i+1))
}

// vipPort is the Service's port in front of a pod's.
func vipPort(p uint16) uint16 { return p + 1000 }

func (a *arena) service(w *model.Writer, i int) {
	name := model.Name{Namespace: "s", Name: fmt.Sprintf("s%d", i)}
	s := &model.Service{Name: name, ClusterIPs: []netip.Addr{arenaVIP(i, false), arenaVIP(i, true)}}
	var ends []model.EndpointPort
	for _, proto := range []model.Protocol{model.TCP, model.UDP} {
		for _, p := range world.Ports() {
			n := fmt.Sprintf("p%d-%d", proto, p)
			s.Ports = append(s.Ports, model.ServicePort{Name: n, Protocol: proto, Port: vipPort(p)})
			ends = append(ends, model.EndpointPort{Name: n, Protocol: proto, Port: p})
		}
	}
	w.PutService(s)
	for j, addr := range a.ends[i].addrs {
		w.PutEndpointSlice(&model.EndpointSlice{Name: model.Name{Namespace: "s", Name: fmt.Sprintf("s%d-%d", i, j)},
			Service: name.Name, Ports: ends,
			Endpoints: []model.Endpoint{{Addr: addr, Ready: true, Serving: true, Node: world.Node}}})
	}
}

// shots are the packets of a step. What a pod sends to itself comes to the node only by
// a Service. SCTP and ICMP have no Service here.
func shots(s world.Step, byVIP, sctpAndICMP bool) (out []shot) {
	for p := range s.Probes() {
		if p.From != p.To {
			out = append(out, shot{p, false})
		}
		if byVIP && p.To != world.Outside {
			out = append(out, shot{p, true})
		}
	}
	if !sctpAndICMP {
		return out
	}
	for p := range s.ProbesOf(model.SCTP, icmp) {
		if p.From != p.To && (p.Protocol != icmp || p.Port == world.Ports()[0]) {
			out = append(out, shot{p, false})
		}
	}
	return out
}

// number is that of the next packet, and whether it may arrive.
func (a *arena) number(want bool) uint32 {
	a.want = append(a.want, want)
	return uint32(len(a.want) - 1)
}

// try sends the shots and returns those that went otherwise than they should.
func (a *arena) try(list []shot) (wrong []shot) {
	a.t.Helper()
	// Packets keep their order on the CPU that sends them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	names := world.Names()
	first := uint32(len(a.want))
	for _, s := range list {
		a.shoot(slices.Index(names, s.From), slices.Index(names, s.To), s, a.number(s.Want))
	}
	a.settle()
	for i, s := range list {
		at, arrived := a.got[first+uint32(i)]
		if arrived && at != slices.Index(names, s.To) {
			a.t.Errorf("%s arrived at %s", s, names[at])
		}
		if arrived != s.Want {
			wrong = append(wrong, s)
		}
	}
	clear(a.got)
	return wrong
}

func (a *arena) shoot(from, to int, s shot, n uint32) {
	f := a.ends[from]
	src, dst, p := at(f.addrs, s.IPv6), at(a.ends[to].addrs, s.IPv6), s.Port
	if s.byVIP {
		dst, p = arenaVIP(to, s.IPv6), vipPort(s.Port)
	}
	a.send(f, src, dst, s.Protocol, p, n)
}

func (a *arena) send(e *arenaEnd, src, dst netip.Addr, proto model.Protocol, p uint16, n uint32) {
	a.sendRaw(e, packet(src, dst, proto, a.sport, p, n), src, dst)
}

func (a *arena) sendRaw(e *arenaEnd, raw []byte, src, dst netip.Addr) {
	var err error
	if dst.Is6() {
		err = unix.Sendto(e.raw[1], raw, 0, &unix.SockaddrInet6{Addr: dst.As16()})
	} else {
		err = unix.Sendto(e.raw[0], raw, 0, &unix.SockaddrInet4{Addr: dst.As4()})
	}
	// The kernel tells of packets that are dropped on the way out of the same socket.
	if err != nil && !errors.Is(err, unix.EPERM) {
		a.t.Fatalf("send from %s to %s: %v", src, dst, err)
	}
}

// barrierBit tells the node's packets.
const barrierBit = 1 << 31

// settle returns when all that was sent has arrived or never will. A packet passes the
// queue of a CPU twice, from link to link, so that what the node sends has to pass twice
// after it.
func (a *arena) settle() {
	a.t.Helper()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	for range 2 {
		for cpu := range runtime.NumCPU() {
			var one unix.CPUSet
			if one.Set(cpu); !before.IsSet(cpu) || unix.SchedSetaffinity(0, &one) != nil {
				continue
			}
			for i, e := range a.ends {
				n := uint32(barrierBit | cpu<<8 | i)
				e.barriers[n] = false
				a.send(a.node, a.node.addrs[0], e.addrs[0], model.UDP, 9, n)
			}
		}
		for deadline := time.Now().Add(patience); !a.drain(); {
			if time.Now().After(deadline) {
				a.t.Fatal("what the node sends does not arrive")
			}
			time.Sleep(50 * time.Microsecond)
		}
	}
}

// drain reads what has arrived; true when the node's packets have, everywhere.
func (a *arena) drain() bool {
	done := true
	buf := make([]byte, 256)
	for i, e := range a.ends {
		for {
			n, _, err := unix.Recvfrom(e.tap, buf, unix.MSG_TRUNC)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				a.t.Fatalf("tap of %s: %v", e.Name, err)
			}
			if id, ok := numberOf(buf[:min(n, len(buf))]); ok {
				a.arrived(i, id)
			}
		}
		for _, there := range e.barriers {
			done = done && there
		}
	}
	return done
}

func (a *arena) arrived(i int, id uint32) {
	if id&barrierBit != 0 {
		a.ends[i].barriers[id] = true
		return
	}
	if _, twice := a.got[id]; twice {
		a.t.Errorf("packet %d arrived twice", id)
	}
	a.got[id] = i
}

// packet makes the first packet of a flow, which carries a number.
func packet(src, dst netip.Addr, proto model.Protocol, sport, dport uint16, n uint32) []byte {
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, sport), dport)
	var l4 []byte
	next, sum := uint8(proto), 0
	switch proto {
	case model.UDP:
		l4, sum = append(ports, 0, 12, 0, 0), 6
		l4 = binary.BigEndian.AppendUint32(l4, n)
	case model.TCP:
		l4 = binary.BigEndian.AppendUint32(ports, n)
		l4, sum = append(l4, 0, 0, 0, 0, 5<<4, 2, 0xff, 0xff, 0, 0, 0, 0), 16 // SYN
	case model.SCTP: // INIT, RFC 9260, section 3.3.2
		l4 = append(ports, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20)
		l4 = binary.BigEndian.AppendUint32(l4, n)
		l4 = append(l4, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
		binary.LittleEndian.PutUint32(l4[8:], crc32.Checksum(l4, crc32.MakeTable(crc32.Castagnoli)))
	case icmp: // echo request
		l4, sum = binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, n), 2
		if src.Is6() {
			l4[0], next = 128, unix.IPPROTO_ICMPV6
		}
	}
	return network(src, dst, proto, next, l4, sum)
}

// network puts the header of IP before l4, whose checksum is at sum if that is not 0.
func network(src, dst netip.Addr, proto model.Protocol, next uint8, l4 []byte, sum int) []byte {
	if sum > 0 {
		pseudo := l4
		if proto != icmp || src.Is6() {
			pseudo = slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, next}, binary.BigEndian.AppendUint16(nil,
				uint16(len(l4))), l4)
		}
		binary.BigEndian.PutUint16(l4[sum:], checksum(pseudo))
	}
	if src.Is6() {
		h := []byte{0x60, 0, 0, 0, 0, byte(len(l4)), next, 64}
		return slices.Concat(h, src.AsSlice(), dst.AsSlice(), l4)
	}
	h := []byte{0x45, 0, 0, byte(20 + len(l4)), 0, 0, 0, 0, 64, next, 0, 0}
	return slices.Concat(h, src.AsSlice(), dst.AsSlice(), l4)
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum = ^sum & 0xffff; sum == 0 {
		return 0xffff
	}
	return uint16(sum)
}

// numberOf reads the number of a packet; false for one that is none of ours.
func numberOf(b []byte) (uint32, bool) {
	if len(b) < 40 && (len(b) < 20 || b[0]>>4 != 4) {
		return 0, false
	}
	head, next := 20, b[9]
	if b[0]>>4 == 6 {
		head, next = 40, b[6]
	}
	l4, offset := b[head:], 0
	switch next {
	case uint8(model.UDP):
		offset = 8
	case uint8(model.TCP):
		if offset = 4; len(l4) < 14 || l4[13] != 2 {
			return 0, false
		}
	case uint8(model.SCTP):
		offset = 16
	case uint8(icmp), unix.IPPROTO_ICMPV6:
		if offset = 4; l4[0] != 8 && l4[0] != 128 {
			return 0, false
		}
	default:
		return 0, false
	}
	if len(l4) < offset+4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(l4[offset:]), true
}

// rewatch begins from an empty store.
func (a *arena) rewatch() {
	a.t.Helper()
	a.watch.Close()
	if err := a.store.Close(); err != nil {
		a.t.Fatal(err)
	}
	var err error
	if a.store, err = model.NewStore(); err != nil {
		a.t.Fatal(err)
	}
	if a.watch, err = a.store.Watch(networkpolicy.PlannerKinds); err != nil {
		a.t.Fatal(err)
	}
}
