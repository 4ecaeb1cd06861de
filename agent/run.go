package agent

import (
	"context"
	"path/filepath"
	"sync"

	"wayleave.dev/internal/owner"
	kubesource "wayleave.dev/source/kubernetes"
)

// Run is the agent of a node until ctx ends, for which it returns nil.
func Run(ctx context.Context, o Options) error {
	n, err := newNode(ctx, o)
	if err != nil {
		return err
	}
	defer n.Store.Close()
	g := newGroup(ctx)
	g.start(Part{"health", n.serveHealth}, Part{"source", n.source(n.Name, n.kinds()).Run}, Part{"reports", n.report})
	g.start(n.Always()...)
	g.start(Part{"node", n.Own})
	return g.wait()
}

// Always returns the parts of features that run in every agent, as owner and as standby.
func (n *Node) Always() (out []Part) {
	for _, f := range n.Features {
		if r, ok := f.(Runner); ok && f.Enabled(n.Config) {
			out = append(out, r.Run(n)...)
		}
		if i, ok := f.(Idler); ok && !f.Enabled(n.Config) {
			out = append(out, i.Idle(n)...)
		}
	}
	return out
}

// Own waits to be the owner of the node, and then runs what changes it.
func (n *Node) Own(ctx context.Context) error {
	if err := n.Store.WaitSynced(ctx, n.kinds().Required); err != nil {
		return err
	}
	g := newGroup(ctx)
	var once sync.Once
	succeed := func(standby bool) {
		once.Do(func() {
			for _, f := range Enabled[Successor](n.Config, n.Features) {
				g.start(f.Succeed(n, standby)...)
			}
		})
	}
	waiting, owned := context.WithCancel(g.ctx)
	defer owned()
	var standby sync.WaitGroup
	lock, err := owner.Acquire(g.ctx, filepath.Join(n.Run, ownerLock), func() {
		n.Log.Info("standby: another agent owns this node")
		succeed(true)
		n.standBy(waiting, &standby)
	})
	owned()
	standby.Wait()
	if err != nil {
		g.cancel(err)
		g.wg.Wait()
		return err
	}
	defer func() {
		if err := lock.Release(); err != nil {
			n.Log.Error("could not release the node", "err", err)
		}
	}()
	n.lock.Store(lock)
	n.Log.Info("this agent owns the node")
	succeed(false)
	g.start(n.ownerParts()...)
	return g.wait()
}

// standBy runs the parts of a standby until ctx ends.
func (n *Node) standBy(ctx context.Context, wg *sync.WaitGroup) {
	for _, f := range Enabled[Standby](n.Config, n.Features) {
		for _, p := range f.StandBy(n) {
			wg.Go(func() {
				if err := p.Run(ctx); err != nil && ctx.Err() == nil {
					n.Log.Warn("the standby goes on without a part", "part", p.Name, "err", err)
				}
			})
		}
	}
}

// ownerParts run while this agent owns the node.
func (n *Node) ownerParts() []Part {
	parts := []Part{{"status", n.serveStatus}}
	if n.Client != nil {
		servers := kubesource.Servers{Endpoints: n.Client.Endpoints, Store: n.Store, File: n.apiServersFile(),
			Tell: n.TellState}
		parts = append(parts, Part{"API servers", servers.Run})
	}
	for _, f := range n.Features {
		if o, ok := f.(Owner); ok && f.Enabled(n.Config) {
			parts = append(parts, o.Own(n)...)
		}
		if l, ok := f.(Leaver); ok && !f.Enabled(n.Config) {
			parts = append(parts, l.Leave(n)...)
		}
	}
	return parts
}
