// Package iptables renders service plans to iptables, in kube-proxy's chains: KUBE-SERVICES and KUBE-NODEPORTS lead to
// a chain KUBE-SVC-… for each port of a Service, which chooses one of its endpoints' chains KUBE-SEP-….
//
// Names are hashed and rules are written as in kube-proxy. Rules for what kube-proxy does not do (refuse unknown ports
// of a VIP, keep the address of pods on several networks, protect 127.0.0.1) are in chains WAYLEAVE-….
package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"wayleave.dev/kernel/iptables"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// Chains that all Services share.
const (
	chainServices    = "KUBE-SERVICES"
	chainNodePorts   = "KUBE-NODEPORTS"
	chainExternal    = "KUBE-EXTERNAL-SERVICES"
	chainFirewall    = "KUBE-PROXY-FIREWALL"
	chainForward     = "KUBE-FORWARD"
	chainPostrouting = "KUBE-POSTROUTING"
	chainMarkMasq    = "KUBE-MARK-MASQ"
	chainOutside     = "WAYLEAVE-OUTSIDE"
	chainRefusePorts = "WAYLEAVE-NODEPORTS"
	chainRefuse      = "WAYLEAVE-REFUSE"
	chainLocalhost   = "WAYLEAVE-LOCALHOST"
)

// Prefixes of the names of chains that belong to one port of a Service, or to one endpoint of it.
const (
	prefixCluster  = "KUBE-SVC-" // chooses from all endpoints
	prefixLocal    = "KUBE-SVL-" // chooses from those on this node
	prefixOutside  = "KUBE-EXT-" // for external clients
	prefixFirewall = "KUBE-FW-"  // for clients in the source ranges
	prefixEndpoint = "KUBE-SEP-"
)

// port identifies a port of a Service.
type port struct {
	service  model.Name
	name     string
	protocol model.Protocol
}

// String returns kube-proxy's name in comments: "namespace/name:port".
func (p port) String() string {
	if p.name == "" {
		return p.service.String()
	}
	return p.service.String() + ":" + p.name
}

func (p port) proto() string { return strings.ToLower(p.protocol.String()) }

// hash returns the end of a chain's name. It is short, because names of chains have at most 28 bytes, and the same in
// every kube-proxy since 1.5.
func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base32.StdEncoding.EncodeToString(sum[:])[:16]
}

func (p port) chain(prefix string) string { return prefix + hash(p.String()+p.proto()) }

func (p port) endpoint(at netip.AddrPort) string {
	return prefixEndpoint + hash(p.String()+p.proto()+at.String())
}

// probability is the probability with which the first of n is chosen, as the kernel stores it.
func probability(n int) string {
	const whole = 1 << 31
	return fmt.Sprintf("%.11f", math.Round(whole/float64(n))/whole)
}

// single returns an address as a network.
func single(a netip.Addr) string { return fmt.Sprintf("%s/%d", a, a.BitLen()) }

func family(a netip.Addr) iptables.Family {
	if a.Is6() {
		return iptables.IPv6
	}
	return iptables.IPv4
}

func comment(format string, args ...any) string {
	return fmt.Sprintf("-m comment --comment %q", fmt.Sprintf(format, args...))
}

// mask is the mask of xt_recent: the complete address.
func mask(f iptables.Family) string {
	if f == iptables.IPv6 {
		return "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	return "255.255.255.255"
}

// reject refuses at once. An ICMP error does not end a TCP connection attempt over IPv6.
func reject(f iptables.Family, proto string) string {
	if proto == "tcp" {
		return "-j REJECT --reject-with tcp-reset"
	}
	if f == iptables.IPv6 {
		return "-j REJECT --reject-with icmp6-port-unreachable"
	}
	return "-j REJECT --reject-with icmp-port-unreachable"
}

// to matches packets to a frontend with an address.
func to(fe service.Frontend, proto, words string) string {
	return fmt.Sprintf("-d %s -p %s %s -m %s --dport %d", single(fe.Addr), proto, words, proto, fe.Port)
}
