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

// The places that the manifest mounts, see deploy/manifest.tmpl.
const (
	configDir = "/etc/wayleave"
	runDir    = "/run/wayleave"
	stateDir  = "/var/lib/wayleave"
	// apiServersFile remembers where API servers are.
	apiServersFile = stateDir + "/api-servers"
	// dnsPlaceFile remembers where DNS is served.
	dnsPlaceFile = stateDir + "/dns-place"

	hostSysctl = "/host-sysctl"
	// nodeFacts is what the container discover found on the node.
	nodeFacts  = "/node/facts.json"
	cniBinDir  = "/opt/cni/bin"
	cniConfDir = "/etc/cni/net.d"

	// agentSocket serves the owner's status on the node.
	agentSocket = runDir + "/agent.sock"
	// healthSocket serves the health of this pod's agent, owner or standby.
	healthSocket = "/pod/agent.sock"
	// dnsSocket and proxySocket are the agent's, each in a folder that only one other container
	// has, which cannot write there.
	dnsSocket   = "/pod-dns/feed.sock"
	proxySocket = "/pod-proxy/feed.sock"
	// ownDir is the folder that only the container itself has, of dns and of proxy.
	ownDir       = "/own"
	dnsProbes    = ownDir + "/dns-health.sock"
	proxyProbes  = ownDir + "/proxy-health.sock"
	dnsStateFile = ownDir + "/snapshot"
	// xtablesLock is the file that programs of iptables-legacy lock on the node.
	xtablesLock = "/run/xtables.lock"
)
