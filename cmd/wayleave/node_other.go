//go:build !linux

package main

import (
	"github.com/spf13/cobra"

	"wayleave.dev/cmd/wayleave/commands"
)

// program has the commands that need no node: nodes run Linux.
func program() *cobra.Command { return commands.Root(release(), nil, "") }
