package networkpolicy

import (
	"net/netip"

	"wayleave.dev/model"
)

// Decide says what entries say of a packet, as a mode has the kernel decide it, for
// one direction: local is the address of the pod that is or is not isolated, peer the
// packet's other end. The port is the one that the packet goes to; for protocols
// without ports it does not matter.
//
// A packet passes when both of its directions allow it. That traffic with the own node
// and replies always pass is for the caller to know.
func Decide(entries map[Key]Entry, d Direction, local, peer netip.Addr, proto model.Protocol, port uint16) bool {
	if local == peer {
		return true
	}
	pod, isolated := entries[Key{Kind: PodEntry, Direction: d, Addr: local}]
	if !isolated {
		return true
	}
	if e, ok := entries[Key{Kind: PeerEntry, Direction: d, Addr: peer, Profile: pod.Profile}]; ok {
		return e.Ports.Contains(proto, port)
	}
	blocks := entries[Key{Kind: BlocksEntry, Direction: d, Profile: pod.Profile}].Blocks
	return portsAt(blocks, peer).Contains(proto, port)
}
