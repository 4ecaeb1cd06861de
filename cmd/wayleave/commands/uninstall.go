//go:build linux

package commands

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
	"wayleave.dev/internal/cli"
)

func uninstallCommand() *cobra.Command {
	var onlyVerify bool
	var out cli.Output
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take every rule, route, link, address, sysctl and file of ours off this node",
		Long: "Run it on the node as root, after the DaemonSet is deleted:\n" +
			"the program is in the image; docs/operations.md says how to copy it to the node.\n" +
			"It ends by looking whether anything is left; --verify only looks.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			h, err := agent.ThisHost()
			if err != nil {
				return err
			}
			defer h.Close()
			if !onlyVerify {
				if err := h.Uninstall(ctx, features.All()); err != nil {
					return err
				}
			}
			if err := h.Verify(ctx, features.All()); err != nil {
				return err
			}
			return out.Print(cmd.OutOrStdout(), "nothing of Wayleave is left on this node\n",
				map[string]bool{"clean": true})
		},
	}
	c.Flags().BoolVar(&onlyVerify, "verify", false, "change nothing; fail when something of Wayleave is on this node")
	out.Flag(c)
	return c
}
