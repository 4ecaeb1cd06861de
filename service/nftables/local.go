package nftables

import (
	"context"
	"fmt"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/reconcile"
)

// Locals brings service.Local about, for a reconcile.Loop of its own: its key is
// the name of this node, and there is no other.
type Locals struct{ m *Mode }

var _ reconcile.Target[string, Local] = Locals{}

// Locals is the mode's target for the facts of the node.
func (m *Mode) Locals() Locals { return Locals{m} }

// Sync implements reconcile.Target.
func (t Locals) Sync(ctx context.Context, all map[string]Local) error { return t.Apply(ctx, all, nil) }

// Apply implements reconcile.Target. Before the first Sync of the mode it only
// keeps the facts for that.
func (t Locals) Apply(ctx context.Context, set map[string]Local, del []string) error {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if len(del) > 0 {
		t.m.local = Local{}
	}
	for _, l := range set {
		t.m.local = l
	}
	if !t.m.synced {
		return nil
	}
	var changes []nft.Change
	for _, f := range nft.Families() {
		changes = append(changes, nft.Change{Table: table(f), Batch: nft.Batch{
			Clear: localNames(), Add: localSets(f, t.m.local)}})
	}
	if err := t.m.conn.CommitAll(ctx, changes...); err != nil {
		return fmt.Errorf("service: the node's addresses and the pod networks: %w", err)
	}
	return nil
}
