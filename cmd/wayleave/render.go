//go:build linux

package main

import (
	"github.com/spf13/cobra"

	"wayleave.dev/agent/service"
	"wayleave.dev/explain/objects"
	"wayleave.dev/model"
)

func renderCommand() *cobra.Command {
	var r service.Rendering
	var files []string
	c := &cobra.Command{
		Use:   "render -f FILE",
		Short: "Print what YAML files would become in the kernel; changes nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.Check(); err != nil {
				return err
			}
			store, err := model.NewStore()
			if err != nil {
				return err
			}
			defer store.Close()
			if err := objects.Read(store, cmd.ErrOrStderr(), files...); err != nil {
				return err
			}
			return r.Render(store.Snapshot(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	c.Flags().StringVar(&r.Mode, "mode", "nftables", "the data plane: nftables, iptables or ipvs")
	c.Flags().StringVar(&r.Scheduler, "scheduler", "rr", "how the mode ipvs draws endpoints")
	c.Flags().StringVar(&r.Node, "node", "", "the node to render for")
	c.Flags().StringArrayVarP(&files, "filename", "f", nil,
		"a file of Services, EndpointSlices and Nodes; may be repeated")
	require(c, "filename")
	return c
}
