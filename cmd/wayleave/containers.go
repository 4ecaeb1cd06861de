package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	dnsfeature "wayleave.dev/agent/dns"
	"wayleave.dev/agent/ingress"
	"wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/server"
	"wayleave.dev/internal/memlimit"
	"wayleave.dev/proxy/process"
)

func dnsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "dns",
		Short: "Answer the cluster's DNS queries (the container without capabilities)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(os.Stderr, nil))
			// The folder may take a fifth of it, and under a flood the collector falls behind.
			keepMemoryBelow(log, 1, 2)
			err := server.Run(cmd.Context(), server.Config{Socket: dnsfeature.Socket, StateFile: dnsStateFile,
				HealthSocket: dnsProbes, MetricsSocket: dnsfeature.MetricsSocket, Version: version,
				Hung: func(k schema.Socket) { endHung(log, k) }, Log: log})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
	c.AddCommand(importCorefileCommand(), dnsQueryCommand(dnsProbes), dnsLogCommand(dnsProbes))
	return c
}

// endHung ends a server that answers nobody, with what its goroutines do in the
// log: the kernel then sends queries to another node's server, and the kubelet
// starts this one again.
func endHung(log *slog.Logger, k schema.Socket) {
	stacks := make([]byte, 64<<10)
	stacks = stacks[:runtime.Stack(stacks, true)]
	log.Error("the server hangs and ends itself", "socket", k, "stacks", string(stacks))
	os.Exit(1)
}

// dnsQueryCommand asks the server at a socket, as all that follow.
func dnsQueryCommand(socket string) *cobra.Command {
	var as string
	c := &cobra.Command{
		Use:   "query --as pod/NAMESPACE/NAME NAME [TYPE]",
		Short: "Show what a pod of this node gets for a name: each step of its search, and where the answer comes from",
		Example: "  kubectl -n kube-system exec POD_OF_THE_NODE -c dns -- /wayleave dns query --as " +
			"pod/default/web google.com\n" +
			"  kubectl -n kube-system exec POD_OF_THE_NODE -c dns -- /wayleave dns query --as " +
			"pod/default/web backend AAAA",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			pod, ok := strings.CutPrefix(as, "pod/")
			if !ok || strings.Count(pod, "/") != 1 {
				return fmt.Errorf("--as is %q; pod/NAMESPACE/NAME is allowed", as)
			}
			qtype := "A"
			if len(args) > 1 {
				qtype = args[1]
			}
			return show(cmd, socket, dns.QueryPath(pod, args[0], qtype))
		},
	}
	c.Flags().StringVar(&as, "as", "", "the pod that asks: pod/NAMESPACE/NAME")
	return c
}

func dnsLogCommand(socket string) *cobra.Command {
	var pod, name string
	var d time.Duration
	c := &cobra.Command{
		Use:   "log [--pod NAMESPACE/NAME] [--name NAME] [--for 1m]",
		Short: "Show the queries of one pod of this node, or for one name, as they come",
		Example: "  kubectl -n kube-system exec POD_OF_THE_NODE -c dns -- /wayleave dns log --pod " +
			"default/web --for 5m\n" +
			"  kubectl -n kube-system exec POD_OF_THE_NODE -c dns -- /wayleave dns log --name google.com",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if pod == "" && name == "" {
				return errors.New("say whose queries: --pod NAMESPACE/NAME, --name NAME, or both")
			}
			return show(cmd, socket, dns.LogPath(pod, name, d))
		},
	}
	c.Flags().StringVar(&pod, "pod", "", "only the queries of this pod: NAMESPACE/NAME")
	c.Flags().StringVar(&name, "name", "", "only queries for this name, also with a search domain behind it")
	c.Flags().DurationVar(&d, "for", time.Minute, "how long, 1h at most")
	return c
}

// show copies what the dns container says at a path.
func show(cmd *cobra.Command, socket, path string) error {
	body, err := dns.Open(cmd.Context(), socket, path)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(cmd.OutOrStdout(), body)
	return err
}

func proxyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "proxy",
		Short: "Take the cluster's HTTP requests (the container without capabilities)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(os.Stderr, nil))
			keepMemoryBelow(log, 7, 8)
			err := process.Run(cmd.Context(), process.Config{Socket: ingress.Socket, HealthSocket: proxyProbes,
				MetricsSocket: ingress.MetricsSocket, Version: version, AccessLog: os.Stdout, Log: log})
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
