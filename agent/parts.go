package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// All runs functions until ctx ends or one of them returns, and returns why.
func All(ctx context.Context, parts ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, part := range parts {
		wg.Go(func() { cancel(part(ctx)) })
	}
	wg.Wait()
	return context.Cause(ctx)
}

// Merge joins two signals until ctx ends.
func Merge(ctx context.Context, a, b <-chan struct{}) <-chan struct{} {
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

// group runs parts until one of them fails.
type group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

func newGroup(ctx context.Context) *group {
	g := &group{}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	return g
}

func (g *group) start(parts ...Part) {
	for _, p := range parts {
		g.wg.Go(func() {
			if err := p.Run(g.ctx); err != nil && g.ctx.Err() == nil {
				g.cancel(fmt.Errorf("%s: %w", p.Name, err))
			}
		})
	}
}

// wait returns when all parts have ended, and says why: nil if that was wanted.
func (g *group) wait() error {
	g.wg.Wait()
	defer g.cancel(nil)
	if cause := context.Cause(g.ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}
