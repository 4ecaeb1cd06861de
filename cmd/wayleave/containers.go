//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	dnsfeature "wayleave.dev/agent/dns"
	"wayleave.dev/agent/ingress"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/server"
	"wayleave.dev/internal/cli"
	"wayleave.dev/internal/logging"
	"wayleave.dev/internal/memlimit"
	"wayleave.dev/proxy/process"
)

// serveDNS is the container dns, without capabilities.
func serveDNS(cmd *cobra.Command, _ []string) error {
	if _, err := os.Stat(ownDir); err != nil {
		return cli.NoAnswer(fmt.Errorf("%s: the DNS server runs only in its container; `wayleave dns --help` lists "+
			"the commands that ask it: %w", ownDir, err))
	}
	logs := logging.New(os.Stderr, logging.Settings{})
	log := logs.Logger()
	// The folder may take a fifth of it, and under a flood the collector falls behind.
	keepMemoryBelow(log, 1, 2)
	err := server.Run(cmd.Context(), server.Config{Socket: dnsfeature.Socket, StateFile: dnsStateFile,
		HealthSocket: dnsProbes, MetricsSocket: dnsfeature.MetricsSocket, Version: version,
		Hung: func(k schema.Socket) { endHung(log, k) }, Log: log, Logs: logs})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// endHung ends a server that does not answer, with what its goroutines do in the
// log: the kernel then sends queries to another node's server, and the kubelet
// starts this one again.
func endHung(log *slog.Logger, k schema.Socket) {
	stacks := make([]byte, 64<<10)
	stacks = stacks[:runtime.Stack(stacks, true)]
	log.Error("the server hangs and ends itself", "socket", k, "stacks", string(stacks))
	os.Exit(1)
}

func proxyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "proxy",
		Short: "Take the cluster's HTTP requests (the container without capabilities)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logs := logging.New(os.Stderr, logging.Settings{})
			log := logs.Logger()
			keepMemoryBelow(log, 7, 8)
			err := process.Run(cmd.Context(), process.Config{Socket: ingress.Socket, HealthSocket: proxyProbes,
				MetricsSocket: ingress.MetricsSocket, Version: version, AccessLog: os.Stdout, Log: log,
				Logs: logs})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
}

// keepMemoryBelow has the collector of a container without children aim at a part of the container's memory, so that it
// collects sooner than the container would be killed.
func keepMemoryBelow(log *slog.Logger, numerator, denominator int64) {
	if _, err := memlimit.Set(numerator, denominator); err != nil {
		log.Warn("GOMEMLIMIT is not set from the cgroup", "err", err)
	}
}
