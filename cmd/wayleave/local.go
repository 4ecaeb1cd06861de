package main

import (
	"context"
	"log/slog"
	"slices"

	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
)

// localTarget gives the data plane the node's facts before each Sync.
type localTarget struct {
	*nftables.Mode
	store *model.Store
	node  string
}

// Sync implements reconcile.Target.
func (t *localTarget) Sync(ctx context.Context, plans map[model.Name]service.Plan) error {
	t.SetLocal(local(t.store.Snapshot(), t.node))
	return t.Mode.Sync(ctx, plans)
}

// local collects the node's addresses and the cluster's pod networks.
func local(snap model.Snapshot, node string) nftables.Local {
	var l nftables.Local
	for n := range snap.Nodes() {
		l.PodCIDRs = append(l.PodCIDRs, n.PodCIDRs...)
		if n.Name == node {
			l.NodeIPs = n.InternalIPs
		}
	}
	return l
}

// nodesChanged tells when the facts are other ones than before.
func (t *localTarget) nodesChanged(ctx context.Context, log *slog.Logger) <-chan struct{} {
	out := make(chan struct{}, 1)
	w, err := t.store.Watch(model.NodeKind)
	if err != nil {
		log.Error("cannot watch nodes", "err", err)
		return out
	}
	go func() {
		defer w.Close()
		last := local(t.store.Snapshot(), t.node)
		for {
			snap, _, err := w.Next(ctx)
			if err != nil {
				return
			}
			now := local(snap, t.node)
			if slices.Equal(now.NodeIPs, last.NodeIPs) && slices.Equal(now.PodCIDRs, last.PodCIDRs) {
				continue
			}
			last = now
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out
}

// merge joins two signals.
func merge(ctx context.Context, a, b <-chan struct{}) <-chan struct{} {
	out := make(chan struct{}, 1)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-a:
			case <-b:
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out
}
