package main

import (
	"context"
	"sync"
)

// both runs two parts until ctx ends or one of them does, and returns why.
func both(ctx context.Context, a, b func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() { cancel(a(ctx)) })
	wg.Go(func() { cancel(b(ctx)) })
	wg.Wait()
	return context.Cause(ctx)
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
