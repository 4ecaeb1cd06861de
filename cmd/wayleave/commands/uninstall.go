//go:build linux

package commands

import (
	"context"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
)

// uninstallNode removes everything of ours from this node, unless onlyVerify is set, and looks whether anything is
// left.
func uninstallNode(ctx context.Context, onlyVerify bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	h, err := agent.ThisHost()
	if err != nil {
		return err
	}
	defer h.Close()
	if !onlyVerify {
		if err := h.Uninstall(ctx, features.All()); err != nil {
			return err
		}
	}
	return h.Verify(ctx, features.All())
}
