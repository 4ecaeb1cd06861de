package wireguard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/namespace"
)

// Witness counts the packets between networks that pass a link, in both directions. It is a socket with a filter: it
// knows nothing of routes and rules, and so proves what they do. Safe for concurrent use.
type Witness struct {
	NSFD int

	mu    sync.Mutex
	fd    int // 0 for none
	where watched
	seen  uint64
}

// watched is what a witness looks at.
type watched struct {
	link       string
	own, peers []netip.Prefix
}

// maxFilter is the most instructions of a filter (BPF_MAXINSNS).
const maxFilter = 4096

// Look has the witness look at a link, for packets between two lists of networks. It keeps the count.
func (w *Witness) Look(name string, own, peers []netip.Prefix) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	own, peers = merge(own), merge(peers)
	if w.fd != 0 && w.where.link == name && slices.Equal(w.where.own, own) && slices.Equal(w.where.peers, peers) {
		return nil
	}
	w.close()
	filter, err := bpf.Assemble(program(own, peers))
	if err != nil {
		return fmt.Errorf("witness of %s: %w", name, err)
	}
	if len(filter) > maxFilter {
		return fmt.Errorf("witness of %s: its filter for %d networks has %d instructions; allowed: %d", name,
			len(own)+len(peers), len(filter), maxFilter)
	}
	err = namespace.Do(w.NSFD, func() error { return w.open(name, filter) })
	if err != nil {
		return fmt.Errorf("witness of %s: %w", name, err)
	}
	w.where = watched{name, own, peers}
	return nil
}

func (w *Witness) open(name string, filter []bpf.RawInstruction) error {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	raw := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		raw[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	err = errors.Join(
		// Nobody reads: the kernel counts, and drops what finds no room.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1),
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]}))
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index})
	}
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	w.fd = fd
	return nil
}

// Seen is how many packets it has counted, and the link at which it looks; empty for none.
func (w *Witness) Seen() (packets uint64, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count()
	return w.seen, w.where.link
}

// count takes the kernel's count, which begins anew then.
func (w *Witness) count() {
	if w.fd == 0 {
		return
	}
	if s, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		w.seen += uint64(s.Packets) // with those dropped
	}
}

func (w *Witness) close() {
	w.count()
	if w.fd != 0 {
		_ = unix.Close(w.fd)
	}
	w.fd, w.where = 0, watched{}
}

// Close ends it.
func (w *Witness) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.close()
}

// merge joins networks that lie in one another or beside each other.
func merge(list []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(list))
	for _, p := range list {
		out = append(out, p.Masked())
	}
	for changed := true; changed; {
		changed = false
		slices.SortFunc(out, func(a, b netip.Prefix) int {
			if c := a.Addr().Compare(b.Addr()); c != 0 {
				return c
			}
			return a.Bits() - b.Bits()
		})
		next := out[:0]
		for _, p := range out {
			last := len(next) - 1
			switch {
			case last >= 0 && next[last].Overlaps(p):
				changed = true
			case last >= 0 && siblings(next[last], p):
				next[last] = netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
				changed = true
			default:
				next = append(next, p)
			}
		}
		out = next
	}
	return out
}

func siblings(a, b netip.Prefix) bool {
	return a.Bits() == b.Bits() && a.Bits() > 0 && a.Addr().Is6() == b.Addr().Is6() &&
		netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked() == netip.PrefixFrom(b.Addr(), b.Bits()-1).Masked()
}

// Offsets of addresses in the headers of IPv4 and IPv6.
const (
	src4, dst4 = 12, 16
	src6, dst6 = 8, 24
)

// program takes packets between the networks of two lists: from own to peers, or from peers to own.
func program(own, peers []netip.Prefix) []bpf.Instruction {
	four, six := both(own, peers, false, src4, dst4), both(own, peers, true, src6, dst6)
	out := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtProto},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipFalse: 1},
		bpf.Jump{Skip: uint32(2 + len(four))},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipTrue: 1},
		bpf.Jump{Skip: uint32(len(four) + len(six))}}
	return append(slices.Concat(out, four, six), bpf.RetConstant{Val: 0})
}

// both tests both directions in one family. It returns 1 from the program, or goes to its own end, and from there over
// what follows of the program to nothing: packets of one family match no network of the other.
func both(own, peers []netip.Prefix, is6 bool, src, dst uint32) []bpf.Instruction {
	way := func(from, to []netip.Prefix) []bpf.Instruction {
		second := either(to, is6, dst, []bpf.Instruction{bpf.RetConstant{Val: 1}})
		return either(from, is6, src, second)
	}
	out := slices.Concat(way(own, peers), way(peers, own))
	return append(out, bpf.RetConstant{Val: 0})
}

// either runs then if the address at an offset is in one of the networks, and goes on behind it otherwise.
func either(list []netip.Prefix, is6 bool, at uint32, then []bpf.Instruction) []bpf.Instruction {
	var tests [][]bpf.Instruction
	for _, p := range list {
		if p.Addr().Is6() == is6 {
			tests = append(tests, within(p, at))
		}
	}
	if len(tests) == 0 {
		return nil
	}
	// Each test goes on when it fails, and to a jump to then when it succeeds.
	rest := 1 // the jump over then
	var out []bpf.Instruction
	for _, t := range slices.Backward(tests) {
		part := append(slices.Clone(t), bpf.Jump{Skip: uint32(rest)})
		out = append(part, out...)
		rest += len(part)
	}
	return slices.Concat(out, []bpf.Instruction{bpf.Jump{Skip: uint32(len(then))}}, then)
}

// within skips the instruction that follows it unless the address at an offset is in the network.
func within(p netip.Prefix, at uint32) (out []bpf.Instruction) {
	raw := p.Masked().Addr().AsSlice()
	words := (p.Bits() + 31) / 32
	for i := range words {
		mask := ^uint32(0) << max(0, 32*(i+1)-p.Bits())
		left := uint8(3*(words-1-i) + 1)
		out = append(out, bpf.LoadAbsolute{Off: at + uint32(4*i), Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(raw[4*i:]), SkipFalse: left})
	}
	return out
}
