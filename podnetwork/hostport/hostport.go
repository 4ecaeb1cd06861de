// Package hostport brings ports of the node to pods: what a pod's ports[].hostPort
// and hostIP ask for, by CNI's capability portMappings (CONVENTIONS.md of the CNI
// specification).
//
// The kernel has two maps per family: one for mappings of any address of the node,
// one for those of a single address. A packet to a mapped port is translated once,
// when its connection begins.
package hostport

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"

	"wayleave.dev/internal/apiaddr"
)

// Mapping is a port of the node that belongs to a pod.
type Mapping struct {
	// HostIP is the node's address, or the zero Addr (in JSON "") for all.
	HostIP        netip.Addr     `json:"hostIP,omitzero"`
	HostPort      uint16         `json:"hostPort"`
	ContainerPort uint16         `json:"containerPort"`
	Protocol      model.Protocol `json:"protocol"`
}

// String reads "tcp 192.0.2.1:80".
func (m Mapping) String() string {
	host := "*"
	if m.HostIP.IsValid() {
		host = m.HostIP.String()
	}
	return fmt.Sprintf("%s %s port %d", m.Protocol, host, m.HostPort)
}

// Request is a mapping as the runtime writes it.
type Request struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// Parse checks what the runtime asks for; its errors name the field. A container
// port without a host port asks for nothing. reserved names the program of the node that has a
// port; a port of none is empty.
func Parse(list []Request, reserved func(model.Protocol, uint16) string) (out []Mapping, err error) {
	for i, r := range list {
		at := fmt.Sprintf("runtimeConfig.portMappings[%d].", i)
		if r.HostPort == 0 {
			continue
		}
		if r.HostPort < 0 || r.HostPort > 65535 {
			return nil, fmt.Errorf("%shostPort: %d is not a port; 1 to 65535 are allowed", at, r.HostPort)
		}
		if r.ContainerPort < 1 || r.ContainerPort > 65535 {
			return nil, fmt.Errorf("%scontainerPort: %d is not a port; 1 to 65535 are allowed", at, r.ContainerPort)
		}
		m := Mapping{HostPort: uint16(r.HostPort), ContainerPort: uint16(r.ContainerPort)}
		switch strings.ToLower(r.Protocol) {
		case "tcp", "":
			m.Protocol = model.TCP
		case "udp":
			m.Protocol = model.UDP
		case "sctp":
			m.Protocol = model.SCTP
		default:
			return nil, fmt.Errorf("%sprotocol: %q is not a protocol; tcp, udp and sctp are", at, r.Protocol)
		}
		if whose := reserved(m.Protocol, m.HostPort); whose != "" {
			return nil, fmt.Errorf("%shostPort: %d/%s is a port of %s on the node; any other is allowed", at,
				r.HostPort, m.Protocol, whose)
		}
		if r.HostIP != "" {
			a, err := apiaddr.ParseAddr(r.HostIP)
			if err != nil {
				return nil, fmt.Errorf("%shostIP: %w", at, err)
			}
			if a.IsLoopback() && a.Is6() {
				return nil, fmt.Errorf("%shostIP: %s cannot be mapped: the kernel sends nothing from it to a pod", at,
					a)
			}
			m.HostIP = a // 0.0.0.0 and :: are all of their family
		}
		if j := slices.IndexFunc(out, m.Conflicts); j >= 0 {
			return nil, fmt.Errorf("%shostPort: %s is there twice", at, m)
		}
		out = append(out, m)
	}
	return out, nil
}

// any says that the mapping is for all addresses of a family.
func (m Mapping) any(is6 bool) bool {
	return !m.HostIP.IsValid() || m.HostIP.IsUnspecified() && m.HostIP.Is6() == is6
}

// Conflicts says whether one packet could be for both.
func (m Mapping) Conflicts(o Mapping) bool {
	if m.HostPort != o.HostPort || m.Protocol != o.Protocol {
		return false
	}
	for _, is6 := range []bool{false, true} {
		if m.any(is6) && o.any(is6) {
			return true
		}
	}
	return m.HostIP == o.HostIP
}

// Localhost says whether the node's own 127.0.0.1 is mapped.
func Localhost(list []Mapping) bool {
	return slices.ContainsFunc(list, func(m Mapping) bool { return m.any(false) || m.HostIP.IsLoopback() })
}

// Names of the maps.
const (
	setAny = "host-ports"    // protocol . port → address . port
	setOne = "host-ip-ports" // address . protocol . port → address . port
)

// Sets are the maps that Chains look into.
func Sets() []nft.Set {
	data := []nft.Type{nft.Addr, nft.Port}
	return []nft.Set{
		{Name: setAny, Key: []nft.Type{nft.Proto, nft.Port}, Data: data},
		{Name: setOne, Key: []nft.Type{nft.Addr, nft.Proto, nft.Port}, Data: data},
		{Name: setSelf, Key: []nft.Type{nft.Addr, nft.Addr}},
	}
}

// setSelf has the pods that may come back to themselves, twice.
const setSelf = "host-port-pods"

// Chains translate and masquerade. They come after those of Services (priority -100):
// a connection is translated by the first that knows it.
func Chains(f nft.Family) []nft.Chain {
	// Addresses that are not the node's are nobody's to map: a pod that names another's gets
	// nothing. Those of Services may be the node's (dns, ipvs), and are kept out by the
	// chains of Services, which come first.
	rules := []nft.Rule{
		{nft.LocalDaddr{}, nft.DNATBy{Fields: []nft.Field{nft.Daddr, nft.L4Proto, nft.Dport}, Map: setOne}},
		{nft.LocalDaddr{}, nft.DNATBy{Fields: []nft.Field{nft.L4Proto, nft.Dport}, Map: setAny}},
	}
	back := []nft.Rule{{nft.In{Fields: []nft.Field{nft.Saddr, nft.Daddr}, Set: setSelf}, nft.Masquerade()}}
	chains := []nft.Chain{
		{Name: "host-ports-in", Hook: &nft.Hook{Type: "nat", Hook: "prerouting", Priority: -95}, Rules: rules},
		{Name: "host-ports-out", Hook: &nft.Hook{Type: "nat", Hook: "output", Priority: -95}, Rules: rules},
	}
	if f == nft.IPv4 {
		// A process of the node that came by 127.0.0.1; and from outside of the node
		// nothing is for 127.0.0.1, although route_localnet would let it in.
		localhost := nft.Within{Field: nft.Saddr, Prefix: netip.MustParsePrefix("127.0.0.0/8")}
		back = append(back, nft.Rule{localhost, nft.NotLoopbackOut{}, nft.Masquerade()})
		chains = append(chains, nft.Chain{Name: "no-localhost-in", Hook: &nft.Hook{Type: "filter", Hook: "prerouting",
			Priority: -300},
			Rules: []nft.Rule{{nft.Within{Field: nft.Daddr, Prefix: localhost.Prefix}, nft.NotLoopbackIn{},
				nft.Drop()}}})
	}
	return append(chains, nft.Chain{Name: "host-ports-back", Hook: &nft.Hook{Type: "nat", Hook: "postrouting",
		Priority: 95}, Rules: back})
}

// Elements are the members of the maps for a pod's mappings.
func Elements(f nft.Family, ips []netip.Addr, list []Mapping) map[string][]nft.Element {
	out := map[string][]nft.Element{}
	for _, ip := range ips {
		if ip.Is6() != (f == nft.IPv6) {
			continue
		}
		for _, m := range list {
			to := nft.Pack(ip, m.ContainerPort)
			switch {
			case m.any(ip.Is6()):
				out[setAny] = append(out[setAny], nft.Element{Key: nft.Pack(uint8(m.Protocol), m.HostPort), Data: to})
			case m.HostIP.Is6() == ip.Is6():
				out[setOne] = append(out[setOne],
					nft.Element{Key: nft.Pack(m.HostIP, uint8(m.Protocol), m.HostPort), Data: to})
			}
		}
		if len(list) > 0 {
			out[setSelf] = append(out[setSelf], nft.Element{Key: nft.Pack(ip, ip)})
		}
	}
	return out
}
