package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"wayleave.dev/internal/listeners"
)

// listenersCommand lists the sockets of the container that it is executed in.
func listenersCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "listeners",
		Short:   "List what the processes of this container listen on; docs/security.md says who may connect to each",
		Example: "  kubectl -n kube-system exec POD_OF_THE_NODE -c agent -- /wayleave listeners",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := listeners.Read("/proc/self/net")
			if err != nil {
				return fmt.Errorf("sockets of the node: %w", err)
			}
			own, err := listeners.Own("/proc", all)
			if err != nil {
				return fmt.Errorf("descriptors of this container: %w", err)
			}
			for _, s := range own {
				fmt.Fprintln(cmd.OutOrStdout(), s)
			}
			return nil
		},
	}
}
