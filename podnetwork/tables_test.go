package podnetwork

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/nft/program/programtest"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/hostport"
	"wayleave.dev/podnetwork/ipam"
	"wayleave.dev/podnetwork/routes"
	"wayleave.dev/reconcile"
)

// A crash at any moment, a flush, a refusal: see package programtest.
func TestTablesRecoverFromAnyFault(t *testing.T) {
	t.Parallel()
	programtest.Run(t, programtest.Feature[tableKey, tablePlan]{Equal: tablePlan.equal,
		Table: func(f nft.Family) nft.Table { return table(f, routes.Port) },
		Start: func(c nft.Conn) reconcile.Target[tableKey, tablePlan] {
			return programmed{newTables(c, RulesConfig{})}
		},
		Draw: drawTables})
}

// programmed gives the tables any plans.
type programmed struct{ *tables }

func (p programmed) Sync(ctx context.Context, plans map[tableKey]tablePlan) error {
	return joined(p.program.Sync(ctx, plans))
}

func (p programmed) Apply(ctx context.Context, set map[tableKey]tablePlan, del []tableKey) error {
	return joined(p.program.Apply(ctx, set, del))
}

func joined(failed reconcile.KeyErrors[tableKey], err error) error {
	if err == nil && len(failed) > 0 {
		return failed
	}
	return err
}

// drawTables are the facts of a cluster of a few nodes, and leases with host ports.
func drawTables(r *rand.Rand) map[tableKey]tablePlan {
	facts := &ClusterFacts{}
	for i := range byte(1 + r.IntN(4)) {
		cidrs := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, i, 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 244, 7: i}), 64)}
		facts.All = append(facts.All, cidrs...)
		facts.Nodes = append(facts.Nodes, netip.AddrFrom4([4]byte{192, 0, 2, i}),
			netip.AddrFrom16([16]byte{0xfd, 1, 15: i}))
		if i == 0 && r.IntN(3) > 0 {
			facts.Own = cidrs
		}
	}
	out := map[tableKey]tablePlan{{}: {facts: facts}}
	for i := range byte(8) {
		if r.IntN(3) == 0 {
			continue
		}
		p := tablePlan{ips: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 0, 2 + i})}}
		if r.IntN(2) == 0 {
			p.ips = append(p.ips, netip.AddrFrom16([16]byte{0xfd, 244, 15: 2 + i}))
		}
		for port := range uint16(1 + r.IntN(3)) {
			m := hostport.Mapping{HostPort: 8000 + 10*uint16(i) + port, ContainerPort: uint16(80 + r.IntN(2)),
				Protocol: []model.Protocol{model.TCP, model.UDP, model.SCTP}[r.IntN(3)]}
			if r.IntN(2) == 0 {
				m.HostIP = netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(3))})
			}
			p.ports = append(p.ports, m)
		}
		out[ipam.Key{Container: fmt.Sprint("c", i), Interface: "eth0"}] = p
	}
	return out
}
