package source

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"wayleave.dev/api"
	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/model"
)

// BGPPeer converts a BGPPeer. With a problem it is invalid as a whole: a session that lacks a filter or a password must
// not be made.
func BGPPeer(in *api.BGPPeer) (*model.BGPPeer, []model.Problem) {
	c := newChecker(api.BGPPeerKind, &in.ObjectMeta)
	s := &in.Spec
	out := &model.BGPPeer{Name: in.Name, UID: string(in.UID), Labels: internLabels(in.Labels),
		Nodes:       c.selector("spec.nodeSelector", s.NodeSelector),
		LocalASN:    c.asn("spec.localASN", s.LocalASN),
		Port:        uint16(c.between("spec.port", int64(s.Port), 1, 65535, model.BGPDefaultPort)),
		Password:    c.secretKey("spec.passwordSecret", s.PasswordSecret),
		TTLSecurity: uint8(c.between("spec.ttlSecurity", int64(s.TTLSecurity), 1, 254, 0)),
		MultiHop:    uint8(c.between("spec.ebgpMultiHop", int64(s.EBGPMultiHop), 1, 255, 0)),
		Timers:      c.timers(&s.BGPTimers), Passive: s.Passive,
		Restart: c.restart(s.GracefulRestart), AddPath: s.AddPath,
	}
	c.where(s, out)
	c.whose(s, out)
	if s.TTLSecurity != 0 && s.EBGPMultiHop != 0 {
		c.bad("spec.ebgpMultiHop", "excludes spec.ttlSecurity; one of them is allowed")
	}
	if s.SourceAddress != "" {
		out.Source, _ = c.unicast("spec.sourceAddress", s.SourceAddress)
	}
	if out.Source.IsValid() && out.Address.IsValid() && out.Source.Is4() != out.Address.Is4() {
		c.bad("spec.sourceAddress", "%s is not of the family of spec.address, %s", out.Source, out.Address)
	}
	for i, f := range s.Families {
		switch f {
		case string(corev1.IPv4Protocol):
			out.IPv4 = true
		case string(corev1.IPv6Protocol):
			out.IPv6 = true
		default:
			c.bad(fmt.Sprintf("spec.families[%d]", i), "%q is not a family; IPv4 and IPv6 are allowed", f)
		}
	}
	if len(s.Families) == 0 {
		out.IPv4, out.IPv6 = true, true
	}
	c.imports(&s.Import, out)
	out.Invalid = c.invalid()
	return out, c.problems
}

// where reads which of the three ways names the peer.
func (c *checker) where(s *api.BGPPeerSpec, out *model.BGPPeer) {
	ways := 0
	for _, w := range []string{s.Address, s.Interface, s.AddressRange} {
		if w != "" {
			ways++
		}
	}
	if ways != 1 {
		c.bad("spec.address", "%d of address, interface and addressRange are set; exactly one is allowed", ways)
	}
	if s.Address != "" {
		out.Address, _ = c.unicast("spec.address", s.Address)
	}
	if out.Interface = s.Interface; len(s.Interface) > 15 || strings.ContainsAny(s.Interface, "/ \t\n") ||
		s.Interface == "." || s.Interface == ".." {
		c.bad("spec.interface", "%q is not the name of an interface", s.Interface)
	}
	if s.AddressRange == "" {
		return
	}
	p, err := apiaddr.ParsePrefix(s.AddressRange)
	switch {
	case err != nil:
		c.bad("spec.addressRange", "%v", err)
	case p != p.Masked():
		c.bad("spec.addressRange", "%q has host bits set; write %s", s.AddressRange, p.Masked())
	case p.Addr().BitLen()-p.Bits() > maxRangeBits:
		c.bad("spec.addressRange", "%q has more than %d addresses; a smaller network is allowed", s.AddressRange,
			1<<maxRangeBits)
	default:
		out.Range, out.Passive, out.Port = p, true, 0
	}
	if s.Port != 0 {
		c.bad("spec.port", "has no meaning with spec.addressRange: peers connect to the node")
	}
	if s.SourceAddress != "" {
		c.bad("spec.sourceAddress", "has no meaning with spec.addressRange: peers connect to the node")
	}
}

// whose reads what the peer's ASN must be.
func (c *checker) whose(s *api.BGPPeerSpec, out *model.BGPPeer) {
	out.ASN = c.asn("spec.asn", s.ASN)
	switch s.ASNType {
	case "":
		if s.ASN == 0 {
			c.bad("spec.asn", "is missing; an ASN is allowed here, or spec.asnType")
		}
		return
	case "Internal":
		out.Type = model.InternalASN
	case "External":
		out.Type = model.ExternalASN
	default:
		c.bad("spec.asnType", "%q is not allowed; Internal and External are", s.ASNType)
	}
	if s.ASN != 0 {
		c.bad("spec.asnType", "excludes spec.asn; one of them is allowed")
	}
}

func (c *checker) imports(in *api.BGPImport, out *model.BGPPeer) {
	out.Import = model.BGPImport{DefaultRoute: in.DefaultRoute,
		MaxPrefixes: uint32(c.between("spec.import.maxPrefixes", int64(in.MaxPrefixes), 1, maxPrefixes,
			model.BGPDefaultPrefixes))}
	c.length("spec.import.networks", len(in.Networks), maxNetworks)
	for i, s := range in.Networks[:min(len(in.Networks), maxNetworks)] {
		if p, ok := c.network(fmt.Sprintf("spec.import.networks[%d]", i), s); ok {
			out.Import.Networks = append(out.Import.Networks, p)
		}
	}
}

// unicast checks the address of a router.
func (c *checker) unicast(field, s string) (a netip.Addr, ok bool) {
	a, ok = c.addr(field, s)
	switch {
	case !ok:
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		c.bad(field, "%s is not the address of a router", a)
		ok = false
	case a.IsLinkLocalUnicast():
		c.bad(field, "%s is link-local; name the peer by spec.interface", a)
		ok = false
	}
	return a, ok
}
