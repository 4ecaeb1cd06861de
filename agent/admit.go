package agent

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/firewall"
)

// AdmitPort adds to what the host's firewall must let in: packets to a port of an address of this node, by UDP and TCP.
// untracked says that they are kept out of connection tracking.
func AdmitPort(p *firewall.Pass, a netip.Addr, port int, untracked bool) {
	for _, proto := range []uint8{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		p.Rules = append(p.Rules, firewall.Accepted{Proto: proto, Dport: uint16(port), Dst: a})
		p.Samples = append(p.Samples, firewall.Packet{In: "any link", Is6: a.Is6(), Proto: proto,
			Dport: uint16(port), Dst: a, Untracked: untracked})
	}
}
