package service

import (
	"context"

	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// Mode is a data plane: it programs plans into the kernel of one node. Its methods may be called concurrently; they
// exclude each other.
type Mode interface {
	reconcile.Target[model.Name, Plan]
	// SetNodeFacts replaces the facts of the node; they take effect with the next Sync.
	SetNodeFacts(NodeFacts)
	// ApplyNodeFacts replaces and programs them; before the first Sync it only records them.
	ApplyNodeFacts(context.Context, NodeFacts) error
	// Watch reports foreign changes to the kernel objects of the mode, until ctx ends.
	Watch(context.Context) (<-chan struct{}, error)
	// Remove removes the mode completely from the kernel. Established connections continue.
	Remove(context.Context) error
	// Remains lists what of the mode is in the kernel.
	Remains(context.Context) ([]string, error)
}

// NodeFactsTarget passes the facts of the node to a mode, for a separate reconcile.Loop whose only key is the name of
// this node.
type NodeFactsTarget struct{ Mode Mode }

var _ reconcile.Target[string, NodeFacts] = NodeFactsTarget{}

// Sync implements reconcile.Target.
func (t NodeFactsTarget) Sync(ctx context.Context, all map[string]NodeFacts) error {
	return t.Apply(ctx, all, nil)
}

// Apply implements reconcile.Target.
func (t NodeFactsTarget) Apply(ctx context.Context, set map[string]NodeFacts, _ []string) error {
	var l NodeFacts
	for _, l = range set {
	}
	return t.Mode.ApplyNodeFacts(ctx, l)
}

// MasqueradeMark is the bit of the packet mark by which a data plane selects packets for masquerading, from translation
// until they leave. kube-proxy uses the same bit by default.
const MasqueradeMark = 0x4000
