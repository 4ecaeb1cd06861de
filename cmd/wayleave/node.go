//go:build linux

package main

import (
	"github.com/spf13/cobra"

	"wayleave.dev/cmd/wayleave/commands"
	"wayleave.dev/internal/cli"
)

// program has the commands for people, and those that only the manifest, the kubelet and the agent start.
func program() *cobra.Command {
	c := commands.Root(release(), serveDNS, dnsProbes)
	c.AddCommand(cli.Internal(agentCommand(), writerCommand(), discoverCommand(), proxyCommand(), l2Command(),
		bgpCommand(), wireguardCommand(), statusServerCommand(), listenersCommand(), healthCommand())...)
	return c
}

// The files of the folder that only one container has, dns or proxy.
const (
	ownDir       = "/own"
	dnsProbes    = ownDir + "/dns-health.sock"
	proxyProbes  = ownDir + "/proxy-health.sock"
	dnsStateFile = ownDir + "/snapshot"
)
