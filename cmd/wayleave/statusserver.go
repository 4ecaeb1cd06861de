package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"wayleave.dev/statusserver"
)

// statusServerCommand is the process that the agent starts for what asks :10256 and :10249: it has no capabilities, and
// is told everything over descriptor 3.
func statusServerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "status-server",
		Short:  "Serve health and metrics of the node (the agent starts it)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return statusserver.Main(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("process", "status-server"))
		},
	}
}
