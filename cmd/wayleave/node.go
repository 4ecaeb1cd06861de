//go:build linux

package main

import "github.com/spf13/cobra"

// nodeCommands are the commands that need the kernel of a node.
func nodeCommands() []*cobra.Command {
	return []*cobra.Command{agentCommand(), writerCommand(), discoverCommand(), dnsCommand(),
		proxyCommand(), l2Command(),
		statusServerCommand(), listenersCommand(), statusCommand(), healthCommand(), renderCommand(), explainCommand(),
		ingressCommand(), uninstallCommand()}
}

// The files of the folder that only one container has, dns or proxy.
const (
	ownDir       = "/own"
	dnsProbes    = ownDir + "/dns-health.sock"
	proxyProbes  = ownDir + "/proxy-health.sock"
	dnsStateFile = ownDir + "/snapshot"
)
