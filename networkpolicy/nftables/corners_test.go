package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// hidden is a datagram whose port is not where it is in most.
type hidden struct {
	name string
	is6  bool
	// packets has the datagram as one packet, or as fragments.
	packets func(src, dst netip.Addr, port uint16, text string) [][]byte
	// refused says that the kernel of the receiver takes no such packets.
	refused bool
}

// datagram is a UDP header with its text.
func datagram(src, dst netip.Addr, port uint16, text string) []byte {
	l4 := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, 40000), port)
	l4 = binary.BigEndian.AppendUint16(l4, uint16(8+len(text)))
	l4 = append(append(l4, 0, 0), text...)
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, unix.IPPROTO_UDP}, l4[4:6], l4)
	if len(pseudo)%2 == 1 {
		pseudo = append(pseudo, 0)
	}
	binary.BigEndian.PutUint16(l4[6:], checksum(pseudo))
	return l4
}

// ipv6 puts a header before what has the type next.
func ipv6(src, dst netip.Addr, next byte, rest []byte) []byte {
	h := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(rest)))
	return slices.Concat(append(h, next, 64), src.AsSlice(), dst.AsSlice(), rest)
}

// padding is an extension header of 8 bytes, or of n times 8 more, with an option for
// experiments, which who does not know it skips (RFC 4727, section 3.6).
func padding(next byte, n byte) []byte {
	return append([]byte{next, n, 0x1e, 4 + 8*n}, make([]byte, 4+8*int(n))...)
}

// fragment is a piece of what has the type next.
func fragment(next byte, offset int, more bool, piece []byte) []byte {
	at := uint16(offset)
	if more {
		at |= 1
	}
	h := binary.BigEndian.AppendUint16([]byte{next, 0}, at)
	return append(append(h, 0, 0, 0x12, 0x34), piece...)
}

const (
	hopByHop = 0
	fragmted = 44
	dstOpts  = 60
)

func hiddenPorts() []hidden {
	one := func(next byte, head func(byte) []byte) func(src, dst netip.Addr, port uint16, text string) [][]byte {
		return func(src, dst netip.Addr, port uint16, text string) [][]byte {
			return [][]byte{ipv6(src, dst, next, append(head(unix.IPPROTO_UDP), datagram(src, dst, port, text)...))}
		}
	}
	return []hidden{
		{"destination options", true, one(dstOpts, func(next byte) []byte { return padding(next, 0) }), false},
		{"long destination options", true, one(dstOpts, func(next byte) []byte { return padding(next, 3) }), false},
		{"hop-by-hop options", true, one(hopByHop, func(next byte) []byte { return padding(next, 0) }), false},
		{"two kinds of options", true,
			one(hopByHop, func(next byte) []byte { return append(padding(dstOpts, 0), padding(next, 1)...) }), false},
		{"an atomic fragment", true, one(fragmted, func(next byte) []byte { return fragment(next, 0, false, nil) }),
			false},
		{"options in a fragment", true,
			one(fragmted, func(next byte) []byte { return fragment(dstOpts, 0, false, padding(next, 0)) }), false},
		{"the port in a second fragment", true, func(src, dst netip.Addr, port uint16, text string) [][]byte {
			return [][]byte{ipv6(src, dst, fragmted, fragment(dstOpts, 0, true, padding(unix.IPPROTO_UDP, 0))),
				ipv6(src, dst, fragmted, fragment(dstOpts, 8, false, datagram(src, dst, port, text)))}
		}, true},
		{"options of IPv4", false, func(src, dst netip.Addr, port uint16, text string) [][]byte {
			l4 := datagram(src, dst, port, text)
			h := binary.BigEndian.AppendUint16([]byte{0x47, 0}, uint16(28+len(l4)))
			h = append(h, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
			return [][]byte{slices.Concat(h, src.AsSlice(), dst.AsSlice(), []byte{1, 1, 1, 1, 1, 1, 1, 0}, l4)}
		}, false},
		{"the last fragment first, IPv4", false, func(src, dst netip.Addr, port uint16, text string) (out [][]byte) {
			l4 := datagram(src, dst, port, text)
			for _, part := range []struct {
				offset, flags uint16
				piece         []byte
			}{{1, 0, l4[8:]}, {0, 0x2000, l4[:8]}} {
				h := binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+len(part.piece)))
				h = binary.BigEndian.AppendUint16(append(h, 0x12, 0x34), part.flags|part.offset)
				out = append(out, slices.Concat(append(h, 64, unix.IPPROTO_UDP, 0, 0), src.AsSlice(),
					dst.AsSlice(), part.piece))
			}
			return out
		}, false},
	}
}

// sendRaw sends packets with their own IP headers.
func sendRaw(t *testing.T, ns *testnet.NS, dst netip.Addr, packets [][]byte) {
	t.Helper()
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: dst.As16()})
	if dst.Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: dst.As4()}
	}
	ns.Must(func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, p := range packets {
			if err := unix.Sendto(fd, p, 0, to); err != nil {
				return err
			}
		}
		return nil
	})
}

// A port is found behind options and in fragments: nothing hides it from policy.
func TestNothingHidesAPort(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := l.pods["a"], l.pods["b"]
	const allowed, denied = 90, 91
	l.entries = rules{}.isolate(a, in, "p").peer(in, "p", ports(udp(allowed, allowed)), b.addrs[:]...)
	l.sync()
	var mu sync.Mutex
	got := map[string]bool{}
	for _, p := range []uint16{allowed, denied} {
		c := a.ListenPacket("udp", fmt.Sprintf(":%d", p))
		go func() {
			buf := make([]byte, 200)
			for {
				n, _, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				mu.Lock()
				got[fmt.Sprintf("%s at %d", buf[:n], p)] = true
				mu.Unlock()
			}
		}()
	}
	arrived := func(name string, p uint16) bool {
		mu.Lock()
		defer mu.Unlock()
		return got[fmt.Sprintf("%s at %d", name, p)]
	}
	for _, x := range hiddenPorts() {
		src, dst := at(b.addrs, x.is6), at(a.addrs, x.is6)
		before := l.drops()[End{Direction: in, Addr: dst}]
		sendRaw(t, b.NS, dst, x.packets(src, dst, denied, x.name))
		sendRaw(t, b.NS, dst, x.packets(src, dst, allowed, x.name))
		if x.refused {
			continue
		}
		testnet.Eventually(t, patience, func() error {
			if !arrived(x.name, allowed) {
				return fmt.Errorf("%s: a datagram to the port that is allowed does not arrive", x.name)
			}
			return nil
		})
		if l.drops()[End{Direction: in, Addr: dst}] == before {
			t.Errorf("%s: nothing was dropped", x.name)
		}
	}
	// What the own node sends passes, and comes after all of that.
	l.passes("the own node", l.node, "udp", port(at(a.addrs, false), 80))
	for _, x := range hiddenPorts() {
		if arrived(x.name, denied) {
			t.Errorf("%s: a datagram to a port that is not allowed arrived", x.name)
		}
	}
}

// A packet that was dropped begins no connection: the next ones of its kind are dropped
// as well, and pass as soon as they are allowed.
func TestWhatWasDroppedIsDroppedAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := l.pods["a"], l.pods["b"]
	base := func() rules { return rules{}.isolate(a, in, "p") }
	l.entries = base()
	l.sync()
	for _, is6 := range families() {
		to, end := port(at(a.addrs, is6), 80), End{Direction: in, Addr: at(a.addrs, is6)}
		c, err := b.Dial("udp", to.String(), patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		before := l.drops()[end]
		for range 5 {
			if err := echoed(c, 50*time.Millisecond); !timedOut(err) {
				t.Errorf("a datagram that is denied: %v", err)
			}
		}
		syn := [][]byte{packet(at(b.addrs, is6), to.Addr(), model.TCP, 40000, 80, 1)}
		for range 3 {
			sendRaw(t, b.NS, to.Addr(), syn)
		}
		testnet.Eventually(t, patience, func() error {
			if n := l.drops()[end] - before; n != 8 {
				return fmt.Errorf("%d packets of 8 were dropped", n)
			}
			return nil
		})
		l.apply(base().peer(in, "p", all(), b.addrs[:]...))
		if err := echoed(c, patience); err != nil {
			t.Errorf("the same socket, allowed by now: %v", err)
		}
		l.apply(base())
	}
}

// Errors about an allowed flow pass, though ICMP is not allowed: a port without a server
// refuses. Those about others do not come up, since nothing arrives.
func TestErrorsOfAllowedFlowsPass(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := l.pods["a"], l.pods["b"]
	l.entries = rules{}.isolate(a, in, "p").isolate(a, out, "q").isolate(b, in, "p").isolate(b, out, "q").
		peer(in, "p", ports(udp(85, 85)), append(a.addrs[:], b.addrs[:]...)...).
		peer(out, "q", ports(udp(80, 90)), append(a.addrs[:], b.addrs[:]...)...)
	l.sync()
	for _, is6 := range families() {
		refused := func(p uint16, within time.Duration) error {
			c, err := b.Dial("udp", port(at(a.addrs, is6), p).String(), patience)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			return echoed(c, within)
		}
		if err := refused(85, patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a port without a server, IPv6 %t: %v, want it refused", is6, err)
		}
		if err := refused(86, impatience); !timedOut(err) {
			t.Errorf("a port that is not allowed, IPv6 %t: %v, want silence", is6, err)
		}
		if l.ping(b.NS, at(a.addrs, is6)) == nil {
			t.Error("ICMP is allowed")
		}
	}
}
