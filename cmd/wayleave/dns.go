package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"wayleave.dev/dns"
)

func dnsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "dns",
		Short: "Answer the cluster's DNS queries (the container without capabilities)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(os.Stderr, nil))
			err := dns.Run(cmd.Context(), dns.Config{Socket: dnsSocket, StateFile: dnsStateFile, HealthSocket: dnsHealth,
				Hung: func(k dns.Socket) { endHung(log, k) }, Log: log})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
}

// endHung ends a server that answers nobody, with what its goroutines do in the
// log: the kernel then sends queries to another node's server, and the kubelet
// starts this one again.
func endHung(log *slog.Logger, k dns.Socket) {
	stacks := make([]byte, 64<<10)
	stacks = stacks[:runtime.Stack(stacks, true)]
	log.Error("the server hangs and ends itself", "socket", k, "stacks", string(stacks))
	os.Exit(1)
}
