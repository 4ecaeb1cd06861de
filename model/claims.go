package model

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

// Claim is an address or port that a Service asks for: a ClusterIP (an address alone), an
// address for clients outside (Outside), one of them that a load balancer gave (Balancer), a
// port of such an address (Outside and Port), or a node port (a port alone).
type Claim struct {
	Addr     netip.Addr
	Outside  bool
	Balancer bool
	Protocol Protocol
	Port     uint16
}

// Claims calls emit for everything that a Service asks for. An address that it names twice
// is emitted twice.
func (s *Service) Claims(emit func(Claim)) {
	for _, a := range s.ClusterIPs {
		emit(Claim{Addr: a})
	}
	for _, a := range s.LoadBalancerIPs {
		emit(Claim{Addr: a, Balancer: true})
	}
	for _, list := range [][]netip.Addr{s.LoadBalancerIPs, s.ExternalIPs} {
		for _, a := range list {
			emit(Claim{Addr: a, Outside: true})
			for _, p := range s.Ports {
				emit(Claim{Addr: a, Outside: true, Protocol: p.Protocol, Port: p.Port})
			}
		}
	}
	for _, p := range s.Ports {
		if p.NodePort != 0 {
			emit(Claim{Protocol: p.Protocol, Port: p.NodePort})
		}
	}
}

// claimKey is the raw index key of a claim.
func claimKey(c Claim) index.Key {
	k := make(index.Key, 0, 20)
	if c.Addr.IsValid() {
		a := c.Addr.As16()
		k = append(k, a[:]...)
	}
	switch {
	case c.Balancer:
		k = append(k, 2)
	case c.Outside:
		k = append(k, 1)
	}
	if c.Port != 0 {
		k = append(k, byte(c.Protocol))
		k = binary.BigEndian.AppendUint16(k, c.Port)
	}
	return k
}

var serviceByClaim = statedb.Index[*Service, Claim]{
	Name: "claim",
	FromObject: func(s *Service) index.KeySet {
		var keys []index.Key
		seen := map[Claim]bool{}
		s.Claims(func(c Claim) {
			if !seen[c] {
				seen[c] = true
				keys = append(keys, claimKey(c))
			}
		})
		if len(keys) == 0 {
			return index.KeySet{}
		}
		return index.NewKeySet(keys[0], keys[1:]...)
	},
	FromKey: claimKey,
}

// ServicesClaiming yields the Services that ask for exactly this.
func (v Snapshot) ServicesClaiming(c Claim) iter.Seq[*Service] {
	return list(v, services, serviceByClaim.Query(c))
}
