package networkpolicy

import (
	"context"
	"net/netip"

	"wayleave.dev/reconcile"
)

// Mode is what a data plane offers to NetworkPolicies: it brings the plans of Planner about.
type Mode interface {
	reconcile.Target[Key, Entry]
	// Watch tells of foreign changes to what is the mode's, until ctx ends.
	Watch(context.Context) (<-chan struct{}, error)
	// Run cuts connections that a changed policy forbids, until ctx ends, whose error it returns. done, which may be
	// nil, gets what came of each sweep.
	Run(ctx context.Context, done func(Swept, error)) error
	// Isolated returns the isolated ends of this node's pods that are in force.
	Isolated() map[Key]Entry
	// Drops returns how many packets were dropped at each isolated end since it is isolated.
	Drops(context.Context) (map[End]uint64, error)
	// Remove takes everything of the mode out of the kernel.
	Remove(context.Context) error
	// Remains names what of the mode is in the kernel.
	Remains(context.Context) ([]string, error)
}

// End is an isolated end of a connection.
type End struct {
	Direction Direction
	// Addr is the local pod's.
	Addr netip.Addr
}

// Swept is the result of a sweep: how many flows it cut, and how many cut flows it freed.
type Swept struct{ Cut, Freed int }
