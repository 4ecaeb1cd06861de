// Package await waits for states that nobody announces.
package await

import (
	"context"
	"fmt"
	"time"
)

// Success repeats a function, with a pause between calls, until it returns no error. When the context ends, it returns
// the context's cause and the last error, on one line.
func Success(ctx context.Context, pause time.Duration, fn func() error) error {
	for {
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(pause):
		}
	}
}
