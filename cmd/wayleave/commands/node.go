//go:build linux

package commands

import (
	"github.com/spf13/cobra"

	"wayleave.dev/agent"
	"wayleave.dev/internal/cli"
)

// nodeFacts is what an agent has written about its node.
const nodeFacts = agent.NodeFacts

// nodeCommands are the commands that import code for the kernel of a node.
func nodeCommands(dnsServer func(*cobra.Command, []string) error, dnsSocket string) []*cobra.Command {
	dns := cli.Group("dns", "Show how a node's DNS server answers queries", dnsCommands(dnsSocket)...)
	if dnsServer != nil {
		dns.Args, dns.RunE = cobra.NoArgs, dnsServer
	}
	shown := []*cobra.Command{renderCommand(), explainCommand(), ingressCommand(), dns, logLevelCommand()}
	return append(shown, cli.Internal(probeCommand(), dumpCommand())...)
}
