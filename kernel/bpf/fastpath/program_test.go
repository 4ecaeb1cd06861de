package fastpath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
)

// Verdicts of the program.
const (
	toStack    = 0xffffffff
	redirected = 7
)

// flowKey and flow are the types of fastpath.c.
type flowKey struct {
	Link         uint32
	Src, Dst     [16]byte
	Sport, Dport [2]byte
	Protocol     uint32
}

type flow struct {
	Checked   uint64
	Link, MTU uint32
	MACs      [12]byte
	Way       uint32
}

// frame is a packet of the connection 10.244.1.1:1000 to 10.244.1.2:80, or of its addresses of IPv6; change edits the
// network packet.
func frame(is6 bool, protocol uint8, data int, change func(ip []byte)) []byte {
	head := 20
	if is6 {
		head = 40
	}
	l4 := map[uint8]int{unix.IPPROTO_TCP: 20, unix.IPPROTO_UDP: 8}[protocol]
	b := make([]byte, 14+head+l4+data)
	ip := b[14:]
	src, dst := ends(is6)
	if is6 {
		binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IPV6)
		ip[0], ip[6], ip[7] = 0x60, protocol, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(l4+data))
		copy(ip[8:], src.AsSlice())
		copy(ip[24:], dst.AsSlice())
	} else {
		binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IP)
		ip[0], ip[8], ip[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
	}
	binary.BigEndian.PutUint16(ip[head:], 1000)
	binary.BigEndian.PutUint16(ip[head+2:], 80)
	if protocol == unix.IPPROTO_TCP {
		ip[head+12], ip[head+13] = 5<<4, 0x10 // ACK
	}
	if change != nil {
		change(ip)
	}
	if !is6 {
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], ^sum(ip[:20]))
	}
	return b
}

func ends(is6 bool) (src, dst netip.Addr) {
	if is6 {
		return netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	}
	return netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("10.244.1.2")
}

// sum is the one's complement sum.
func sum(b []byte) uint16 {
	var n uint32
	for i := 0; i < len(b); i += 2 {
		n += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for n > 0xffff {
		n = n&0xffff + n>>16
	}
	return uint16(n)
}

// A packet of a known flow is redirected, with one hop less, the right checksum and the MAC addresses of the pod's
// link. Everything about which the program is not certain goes to the stack unchanged.
func TestVerdicts(t *testing.T) {
	k := &Kernel{}
	c, err := load()
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	k.loaded = c
	defer c.Close()
	const mtu = 1000
	macs := [12]byte{10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25}
	know := func(way uint32) {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now); err != nil {
			t.Fatal(err)
		}
		for _, is6 := range []bool{false, true} {
			for _, protocol := range []uint32{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
				src, dst := ends(is6)
				key := flowKey{Link: loopback, Src: src.As16(), Dst: dst.As16(), Sport: [2]byte{1000 >> 8, 1000 & 0xff},
					Dport: [2]byte{0, 80}, Protocol: protocol}
				known := flow{uint64(now.Nano()), loopback, mtu, macs, way}
				if err := c.Maps["flows"].Put(key, known); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	// ask gives a packet to the program while the flows are fresh: a stall of the machine makes them old.
	ask := func(way uint32, in []byte) (uint32, []byte, error) {
		for {
			begin := time.Now()
			know(way)
			ret, out, err := c.Programs[programName].Test(in)
			if time.Since(begin) < 50*time.Millisecond {
				return ret, out, err
			}
		}
	}
	const tcp, udp = unix.IPPROTO_TCP, unix.IPPROTO_UDP
	set := func(at int, v byte) func([]byte) { return func(ip []byte) { ip[at] = v } }
	for _, tt := range []struct {
		name  string
		frame []byte
		fast  bool
	}{
		{"TCP", frame(false, tcp, 100, nil), true},
		{"TCP, IPv6", frame(true, tcp, 100, nil), true},
		{"UDP", frame(false, udp, 100, nil), true},
		{"UDP, IPv6", frame(true, udp, 100, nil), true},
		{"TCP, as large as the MTU", frame(false, tcp, mtu-40, nil), true},
		{"don't fragment", frame(false, tcp, 100, set(6, 0x40)), true},
		{"a TTL that makes the checksum overflow", frame(false, tcp, 100, func(ip []byte) {
			ip[8] = 2
			// The identification makes the checksum 0xffff less one hop.
			ip[10], ip[11], ip[4], ip[5] = 0, 0, 0, 0
			binary.BigEndian.PutUint16(ip[4:], ^sum(ip[:20])-0xfeff)
		}), true},
		{"above the MTU", frame(false, tcp, mtu-39, nil), false},
		{"above the MTU, IPv6", frame(true, udp, mtu-47, nil), false},
		{"SYN", frame(false, tcp, 0, set(33, 0x02)), false},
		{"FIN", frame(false, tcp, 0, set(33, 0x11)), false},
		{"RST, IPv6", frame(true, tcp, 0, set(53, 0x04)), false},
		{"a first fragment", frame(false, udp, 100, set(6, 0x20)), false},
		{"a later fragment", frame(false, udp, 100, set(7, 1)), false},
		{"options", frame(false, tcp, 100, set(0, 0x46)), false},
		{"a TTL that ends", frame(false, tcp, 100, set(8, 1)), false},
		{"a hop limit that ends", frame(true, tcp, 100, set(7, 1)), false},
		{"an extension header", frame(true, tcp, 100, set(6, 60)), false},
		{"a fragment header", frame(true, tcp, 100, set(6, 44)), false},
		{"another protocol", frame(false, tcp, 100, set(9, 132)), false},
		{"another version", frame(false, tcp, 100, set(0, 0x55)), false},
		{"another source", frame(false, tcp, 100, set(15, 9)), false},
		{"another destination", frame(false, tcp, 100, set(19, 9)), false},
		{"another source port", frame(false, tcp, 100, set(21, 9)), false},
		{"another destination port", frame(false, tcp, 100, set(23, 9)), false},
		{"ARP", append([]byte{12: 8, 13: 6}, make([]byte, 46)...), false},
		{"half a header", frame(false, tcp, 0, nil)[:50], false},
		{"to another host", append([]byte{2}, frame(false, tcp, 100, nil)[1:]...), false},
	} {
		ret, out, err := ask(wayPeer, tt.frame)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if want := map[bool]uint32{true: redirected, false: toStack}[tt.fast]; ret != want {
			t.Errorf("%s: the verdict is %d, want %d", tt.name, int32(ret), int32(want))
			continue
		}
		if want := passed(tt.frame, tt.fast, macs); !bytes.Equal(out, want) {
			t.Errorf("%s: the packet is\n%x, want\n%x", tt.name, out, want)
		}
	}
	in := frame(false, tcp, 100, nil)
	if ret, out, err := ask(wayNeighbour, in); err != nil || ret != redirected ||
		!bytes.Equal(out, passed(in, true, [12]byte(in[:12]))) {
		t.Errorf("to another node: %d, %x, %v", ret, out, err)
	}
	if ret, out, err := ask(0, in); err != nil || ret != toStack || !bytes.Equal(out, in) {
		t.Errorf("a flow of the stack: %d, %x, %v", ret, out, err)
	}
	if n, err := k.Redirected(); err != nil || n.Local < 7 || n.Remote < 1 {
		t.Errorf("counted are %+v, %v", n, err)
	}
}

// passed is the packet behind the node.
func passed(in []byte, fast bool, macs [12]byte) []byte {
	out := bytes.Clone(in)
	if !fast {
		return out
	}
	copy(out, macs[:])
	ip := out[14:]
	if ip[0]>>4 == 6 {
		ip[7]--
		return out
	}
	ip[8]--
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip[:20]))
	return out
}

// The types are as large as the program's.
func TestLayout(t *testing.T) {
	spec, err := loadProgram()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]int{"flows": {binary.Size(flowKey{}), binary.Size(flow{})},
		"pods": {16, binary.Size(pod{})}, "pairs": {4, binary.Size(pair{})}} {
		if m := spec.Maps[name]; int(m.KeySize) != want[0] || int(m.ValueSize) != want[1] {
			t.Errorf("%s has keys of %d bytes and values of %d, want %v", name, m.KeySize, m.ValueSize, want)
		}
	}
	if m := spec.Maps["flows"]; m.Type != ebpf.LRUHash {
		t.Errorf("flows are a %s", m.Type)
	}
}

// A SYN like one that the stack accepted lately is redirected, and no other one.
func TestVerdictsOfSYNs(t *testing.T) {
	ns := testnet.New(t, "node")
	// The rule has connection tracking work.
	ns.Run("nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; }; "+
		"add rule inet t f ct state established accept")
	k := &Kernel{NSFD: ns.FD()}
	if err := k.Possible(); errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	spec, err := loadProgram()
	if err != nil {
		t.Fatal(err)
	}
	c, err := ebpf.NewCollection(spec) // the seed is 0
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range timeouts {
		must(c.Maps["timeouts"].Put(uint32(i), uint32(60000)))
	}
	// Packets come from an uplink: the loopback, where the test has them arrive.
	must(c.Maps["uplinks"].Put(uint32(loopback), uint32(1)))
	for _, is6 := range []bool{false, true} {
		_, dst := ends(is6)
		must(c.Maps["pods"].Put(dst.As16(), pod{Link: loopback + 1, MTU: 1500}))
	}
	const generation = 7
	known := func(is6 bool, change func(*pair)) {
		src, dst := ends(is6)
		var now unix.Timespec
		must(unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now))
		p := pair{Allowed: generation, AllowedAt: uint64(now.Nano()), Key: pairKey{src.As16(), dst.As16(), loopback,
			uint32(binary.NativeEndian.Uint16([]byte{0, 80}))}}
		at := p.Key.place()
		if change != nil {
			change(&p)
		}
		must(c.Maps[generationName].Put(uint32(0), uint64(generation)))
		must(c.Maps["pairs"].Put(at, p))
	}
	syn := func(is6 bool, data int, change func([]byte)) []byte {
		return frame(is6, unix.IPPROTO_TCP, data, func(ip []byte) {
			flags := 33
			if is6 {
				flags = 53
			}
			ip[flags] = 2
			if change != nil {
				change(ip)
			}
		})
	}
	set := func(at int, v byte) func([]byte) { return func(ip []byte) { ip[at] = v } }
	for _, tt := range []struct {
		name  string
		is6   bool
		frame []byte
		pair  func(*pair)
		fast  bool
	}{
		{"allowed", false, syn(false, 0, nil), nil, true},
		{"allowed, IPv6", true, syn(true, 0, nil), nil, true},
		{"of another generation", false, syn(false, 0, nil), func(p *pair) { p.Allowed-- }, false},
		{"of no generation", false, syn(false, 0, nil), func(p *pair) { p.Allowed = 0 }, false},
		{"too long ago", false, syn(false, 0, nil), func(p *pair) { p.AllowedAt -= 600e6 }, false},
		{"another place of the hash", false, syn(false, 0, nil), func(p *pair) { p.Key.Dport++ }, false},
		{"that arrived elsewhere", false, syn(false, 0, nil), func(p *pair) { p.Key.Link++ }, false},
		{"another port", false, syn(false, 0, set(23, 81)), nil, false},
		{"another source", false, syn(false, 0, set(15, 9)), nil, false},
		{"another source port", false, syn(false, 0, set(21, 9)), nil, true},
		{"with data", false, syn(false, 1, nil), nil, false},
		{"with options of IP", false, syn(false, 0, set(0, 0x46)), nil, false},
		{"a fragment", false, syn(false, 0, set(6, 0x20)), nil, false},
		{"a TTL that ends", false, syn(false, 0, set(8, 1)), nil, false},
		{"SYN and FIN", false, syn(false, 0, set(33, 3)), nil, false},
		{"SYN and RST", false, syn(false, 0, set(33, 6)), nil, false},
		{"SYN and ACK", false, syn(false, 0, set(33, 0x12)), nil, false},
	} {
		var ret uint32
		ns.ForgetFlows()
		for begin := time.Now(); ; begin = time.Now() {
			known(tt.is6, tt.pair)
			ns.Must(func() (err error) { ret, _, err = c.Programs[programName].Test(tt.frame); return err })
			if time.Since(begin) < 200*time.Millisecond || !tt.fast {
				break
			}
			ns.ForgetFlows()
		}
		if want := map[bool]uint32{true: redirected, false: toStack}[tt.fast]; ret != want {
			t.Errorf("%s: the verdict is %d, want %d", tt.name, int32(ret), int32(want))
		}
		out, err := ns.Try("sh", "-c", "conntrack -L -p tcp; conntrack -L -f ipv6 -p tcp")
		must(err)
		if strings.Contains(out, "NONE") != tt.fast {
			t.Errorf("%s: there are the connections %q", tt.name, out)
		}
	}
	// A connection that exists has its packets in the stack, in both directions.
	known(false, nil)
	for range 2 {
		var ret uint32
		ns.Must(func() (err error) { ret, _, err = c.Programs[programName].Test(syn(false, 0, nil)); return err })
		known(false, nil)
		if ret == toStack {
			return
		}
	}
	t.Error("two SYNs of one connection were redirected")
}

// pair and pairKey are the types of fastpath.c.
type pairKey struct {
	Src, Dst    [16]byte
	Link, Dport uint32
}

type pair struct {
	Lock, Sport                        uint32
	Asked, AskedAt, Allowed, AllowedAt uint64
	Key                                pairKey
}

// place is the place of a key with the seed 0.
func (k pairKey) place() uint32 {
	raw, err := binary.Append(nil, binary.NativeEndian, k)
	if err != nil {
		panic(err)
	}
	hash := uint32(0)
	for ; len(raw) > 0; raw = raw[4:] {
		hash = (hash ^ binary.NativeEndian.Uint32(raw)) * 0x9e3779b1
		hash ^= hash >> 15
	}
	return hash % 16384
}
