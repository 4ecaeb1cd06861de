package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"wayleave.dev/agent/ingress"
	"wayleave.dev/internal/memlimit"
	"wayleave.dev/proxy/process"
)

// keepMemoryBelow has a container without children collect sooner than it would be killed.
func keepMemoryBelow(log *slog.Logger) {
	if _, err := memlimit.Set(7, 8); err != nil {
		log.Warn("GOMEMLIMIT is not set from the cgroup", "err", err)
	}
}

func proxyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "proxy",
		Short: "Take the cluster's HTTP requests (the container without capabilities)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(os.Stderr, nil))
			keepMemoryBelow(log)
			err := process.Run(cmd.Context(), process.Config{Socket: ingress.Socket, HealthSocket: proxyProbes,
				AccessLog: os.Stdout, Log: log})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
}
