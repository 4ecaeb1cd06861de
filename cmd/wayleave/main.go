// Command wayleave is the one program of Wayleave: what it does follows from its
// first argument. This package is wiring only.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		status := exitStatus{1, err}
		errors.As(err, &status)
		if status.cause != nil {
			fmt.Fprintln(os.Stderr, "wayleave:", status.cause)
		}
		os.Exit(status.code)
	}
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use:           "wayleave",
		Short:         "Services and networking of Kubernetes in one program",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	c.AddCommand(agentCommand(), writerCommand(), discoverCommand(), dnsCommand(), proxyCommand(), l2Command(),
		statusServerCommand(), listenersCommand(),
		statusCommand(), healthCommand(), renderCommand(), explainCommand(), ingressCommand(), importCommand(),
		uninstallCommand())
	return c
}

// The files of the folder that only one container has, dns or proxy.
const (
	ownDir       = "/own"
	dnsProbes    = ownDir + "/dns-health.sock"
	proxyProbes  = ownDir + "/proxy-health.sock"
	dnsStateFile = ownDir + "/snapshot"
)
