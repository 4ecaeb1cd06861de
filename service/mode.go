package service

import (
	"context"

	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// Mode is a data plane: it brings plans into the kernel of one node. Its methods may
// be called concurrently; they wait for one another.
type Mode interface {
	reconcile.Target[model.Name, Plan]
	// SetNodeFacts replaces the facts of the node; they take effect with the next Sync.
	SetNodeFacts(NodeFacts)
	// ApplyNodeFacts replaces and programs them; before the first Sync it only records them.
	ApplyNodeFacts(context.Context, NodeFacts) error
	// Watch reports changes by others to the kernel objects of the mode, until ctx ends.
	Watch(context.Context) (<-chan struct{}, error)
	// Remove takes everything of the mode out of the kernel. Connections that are
	// established live on.
	Remove(context.Context) error
	// Remains names what of the mode is in the kernel.
	Remains(context.Context) ([]string, error)
}

// NodeFactsTarget is the target of a mode for the facts of the node, for a reconcile.Loop of
// its own: its key is the name of this node, and there is no other.
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

// MasqueradeMark is the bit of the packet mark that a data plane sets on what gets the node's address, from translation
// until it leaves. It is the one that kube-proxy uses by default.
const MasqueradeMark = 0x4000
