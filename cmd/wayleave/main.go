// Command wayleave is the one program of Wayleave: what it does follows from its
// first argument. This package is wiring only.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"wayleave.dev/cmd/wayleave/commands"
	"wayleave.dev/internal/cli"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	os.Exit(cli.Report(root().ExecuteContext(ctx), "wayleave", os.Stderr))
}

func root() *cobra.Command {
	c := commands.Root(version, serveDNS, dnsProbes)
	// What only the manifest, the kubelet and the agent start.
	c.AddCommand(cli.Internal(agentCommand(), writerCommand(), discoverCommand(), proxyCommand(), l2Command(),
		statusServerCommand(), listenersCommand(), healthCommand())...)
	cli.Shape(c, os.Args[0])
	return c
}

// The files of the folder that only one container has, dns or proxy.
const (
	ownDir       = "/own"
	dnsProbes    = ownDir + "/dns-health.sock"
	proxyProbes  = ownDir + "/proxy-health.sock"
	dnsStateFile = ownDir + "/snapshot"
)
