package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"wayleave.dev/internal/memlimit"
	"wayleave.dev/proxy/process"
)

// proxyMemory is what the proxy keeps below by collecting sooner, where neither the environment nor its control
// group says anything else: the manifest gives it 512 MiB.
const proxyMemory = 448 << 20

func proxyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "proxy",
		Short: "Take the cluster's HTTP requests (the container without capabilities)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if memlimit.Set(0) == 0 && os.Getenv("GOMEMLIMIT") == "" {
				debug.SetMemoryLimit(proxyMemory)
			}
			err := process.Run(cmd.Context(), process.Config{Socket: proxySocket, HealthSocket: proxyHealthSocket, AccessLog: os.Stdout,
				Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
}
