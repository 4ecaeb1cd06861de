//go:build !linux

package commands

import "github.com/spf13/cobra"

// nodeFacts is empty: nodes run Linux.
const nodeFacts = ""

// nodeCommands is empty: these commands import code for the kernel of a node.
func nodeCommands(func(*cobra.Command, []string) error, string) []*cobra.Command { return nil }
