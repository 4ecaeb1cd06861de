package conformance

import (
	"context"
	"testing"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
)

// nftMode drives the nftables mode by changes, as the agent does.
type nftMode struct {
	mode *nftables.Mode
	have map[model.Name]service.Plan
	node string
	sync bool
}

func (m *nftMode) Program(ctx context.Context, snap model.Snapshot) error {
	plans := map[model.Name]service.Plan{}
	for s := range snap.Services() {
		if p, ok, _ := service.Make(snap, s.Name, m.node); ok {
			plans[s.Name] = p
		}
	}
	if m.sync {
		m.have, m.sync = plans, false
		return m.mode.Sync(ctx, plans)
	}
	set, del := map[model.Name]service.Plan{}, []model.Name{}
	for k, p := range plans {
		if old, ok := m.have[k]; !ok || !service.Equal(old, p) {
			set[k] = p
		}
	}
	for k := range m.have {
		if _, ok := plans[k]; !ok {
			del = append(del, k)
		}
	}
	m.have = plans
	return m.mode.Apply(ctx, set, del)
}

func (m *nftMode) Disturb(node *testnet.NS) {
	node.Run("nft", "flush", "ruleset")
	m.sync = true
}

func TestNftables(t *testing.T) { Run(t, realNftables(t)) }
