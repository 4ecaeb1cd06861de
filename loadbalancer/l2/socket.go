package l2

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Kind is the protocol of a packet socket.
type Kind string

// The kinds. Each receives one protocol only, so packets of other protocols cost nothing.
const (
	KindARP Kind = "arp"
	KindNDP Kind = "ndp"
)

// OpenSocket opens the packet socket of an interface. It needs CAP_NET_RAW; a process that gets the socket can read
// and write without it.
func OpenSocket(kind Kind, index int) (*os.File, error) {
	proto, program := uint16(unix.ETH_P_ARP), arpFilter
	if kind == KindNDP {
		proto, program = unix.ETH_P_IPV6, ndpFilter
	}
	// Protocol 0 receives nothing until the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	err = attach(fd, program())
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto<<8 | proto>>8, Ifindex: index})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket of interface %d: %w", index, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), string(kind)), nil
}

func attach(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// ours accepts frames for this node without a VLAN tag: a promiscuous interface also receives frames for others, and
// frames of VLANs without an interface here. The last instruction of rest refuses.
func ours(rest ...bpf.Instruction) []bpf.Instruction {
	drop := uint8(len(rest) - 1)
	return append([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OTHERHOST, SkipTrue: drop + 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: drop + 3},
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: drop + 1},
		bpf.LoadAbsolute{Off: 12, Size: 2},
	}, rest...)
}

func arpFilter() []bpf.Instruction {
	return ours(
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherARP, SkipFalse: 1},
		bpf.RetConstant{Val: snap},
		bpf.RetConstant{Val: 0},
	)
}

func ndpFilter() []bpf.Instruction {
	return ours(
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv6, SkipFalse: 6},
		bpf.LoadAbsolute{Off: etherHeader + 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmpV6, SkipFalse: 4},
		bpf.LoadAbsolute{Off: etherHeader + ipv6Header, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: solicitation, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: advertisement, SkipFalse: 1},
		bpf.RetConstant{Val: snap},
		bpf.RetConstant{Val: 0},
	)
}

// snap bounds the bytes that are read of a frame: a neighbour solicitation with all of its options is smaller.
const snap = 2048
