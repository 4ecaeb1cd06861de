package peers

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// netOffset is the offset of the IP header in a socket filter (SKF_NET_OFF of linux/filter.h).
	netOffset = 0xfff00000 // -0x100000
	// maxInstructions is the kernel's limit (BPF_MAXINSNS).
	maxInstructions = 4096
	// wholePacket is the result of a filter that keeps a complete packet.
	wholePacket = 0xffffffff
)

// setFilter makes the kernel drop datagrams of other addresses before they are queued: strangers then cannot fill the
// buffer in which heartbeats wait. If there are more nodes than a filter can name (about 2,000 of IPv4, 450 of IPv6),
// all pass, and only this process checks.
func setFilter(c syscall.RawConn, nodes map[netip.Addr]bool) error {
	raw, err := bpf.Assemble(filter(nodes))
	if err != nil {
		return fmt.Errorf("filter of the nodes' addresses: %w", err)
	}
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	var inner error
	err = c.Control(func(fd uintptr) {
		inner = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	if err := errors.Join(err, inner); err != nil {
		return fmt.Errorf("filter of the nodes' addresses: %w", err)
	}
	return nil
}

// filter accepts the addresses, sorted, so that equal sets give equal programs.
func filter(nodes map[netip.Addr]bool) []bpf.Instruction {
	addrs := make([]netip.Addr, 0, len(nodes))
	for a := range nodes {
		addrs = append(addrs, a)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	version4 := []bpf.Instruction{bpf.LoadAbsolute{Off: netOffset + 12, Size: 4}}
	var version6 []bpf.Instruction
	for _, a := range addrs {
		if a.Is4() {
			b := a.As4()
			version4 = append(version4, bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(b[:]),
				SkipFalse: 1}, bpf.RetConstant{Val: wholePacket})
			continue
		}
		b := a.As16()
		for i := 3; i >= 0; i-- { // the last word differs most often
			version6 = append(version6, bpf.LoadAbsolute{Off: netOffset + 8 + 4*uint32(i), Size: 4},
				bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(b[4*i:]), SkipFalse: uint8(2*i + 1)})
		}
		version6 = append(version6, bpf.RetConstant{Val: wholePacket})
	}
	drop := bpf.RetConstant{Val: 0}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: netOffset, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 4, SkipFalse: 1},
		bpf.Jump{Skip: 1},
		bpf.Jump{Skip: uint32(len(version4)) + 1},
	}
	program = append(append(program, version4...), drop)
	program = append(append(program, version6...), drop)
	if len(program) > maxInstructions {
		return []bpf.Instruction{bpf.RetConstant{Val: wholePacket}}
	}
	return program
}
