//go:build !linux

package commands

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

// nodeFacts is empty: nodes run Linux.
const nodeFacts = ""

// nodeCommands is empty: these commands import code for the kernel of a node.
func nodeCommands(func(*cobra.Command, []string) error, string) []*cobra.Command { return nil }

func uninstallNode(context.Context, bool) error {
	return errors.New("nodes run Linux: run it on the node, or with --cluster")
}
