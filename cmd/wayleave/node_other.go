//go:build !linux

package main

import "github.com/spf13/cobra"

// nodeCommands is empty: nodes run Linux.
func nodeCommands() []*cobra.Command { return nil }
