package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"wayleave.dev/dns"
)

func dnsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "dns",
		Short: "Answer the cluster's DNS queries (the container without capabilities)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := dns.Run(cmd.Context(), dns.Config{Socket: dnsSocket, StateFile: dnsStateFile, HealthSocket: dnsHealth,
				Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
	c.AddCommand(importCorefileCommand())
	return c
}
