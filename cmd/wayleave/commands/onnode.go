//go:build linux

package commands

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"wayleave.dev/agent"
	"wayleave.dev/bundle"
	"wayleave.dev/check"
	kubesource "wayleave.dev/source/kubernetes"
)

// probeCommand runs in the container of the agent.
func probeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "probe",
		Short:  "Try from this node what pods do (what `wayleave check` runs in the agent's container)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			servers, domain, err := kubesource.Host{Facts: agent.NodeFacts}.ClusterDNS()
			if err != nil {
				return err
			}
			servers, _ = agent.SplitDNS(servers)
			raw, err := json.Marshal(check.Try(cmd.Context(), servers, domain))
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(append(raw, '\n'))
			return err
		},
	}
}

// dumpCommand runs in the container of the agent.
func dumpCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "dump",
		Short:  "Print the state of the node's network (what `wayleave support-bundle` runs in the agent's container)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			raw, err := json.Marshal(bundle.NodeState(cmd.Context()))
			if err != nil {
				return fmt.Errorf("state of the node: %w", err)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), string(raw)+"\n")
			return err
		},
	}
}
