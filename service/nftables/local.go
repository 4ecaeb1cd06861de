package nftables

import (
	"context"
	"fmt"
	"maps"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/service"
)

// ApplyLocal implements service.Mode.
func (m *Mode) ApplyLocal(ctx context.Context, l service.Local) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.local = l
	old := m.lay
	m.lay = m.lay.with(l)
	switch {
	case !m.synced:
		return nil
	case !m.lay.like(old):
		return m.sync(ctx, maps.Clone(m.Want))
	}
	var changes []nft.Change
	for _, f := range nft.Families() {
		changes = append(changes, nft.Change{Table: m.lay.table(f), Batch: nft.Batch{
			Clear: localNames(), Add: localSets(f, l)}})
	}
	if err := m.conn.CommitAll(ctx, changes...); err != nil {
		return fmt.Errorf("service: the node's addresses and the pod networks: %w", err)
	}
	return nil
}
