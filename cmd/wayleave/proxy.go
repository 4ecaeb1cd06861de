package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"wayleave.dev/proxy/process"
)

func proxyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "proxy",
		Short: "Take the cluster's HTTP requests (the container without capabilities)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := process.Run(cmd.Context(), process.Config{Socket: proxySocket, HealthSocket: proxyHealthSocket, AccessLog: os.Stdout,
				Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
}
