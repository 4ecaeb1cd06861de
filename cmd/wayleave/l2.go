package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"wayleave.dev/loadbalancer/l2/speaker"
)

// l2Command is the process that the agent starts for hostile bytes: it has no capabilities, and
// is told everything over descriptor 3.
func l2Command() *cobra.Command {
	return &cobra.Command{
		Use:    "l2",
		Short:  "Answer ARP and NDP for load balancers' addresses (the agent starts it)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return speaker.Main(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("process", "l2"))
		},
	}
}
