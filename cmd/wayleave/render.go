package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
	"wayleave.dev/source/manifest"
)

func renderCommand() *cobra.Command {
	var mode, node string
	var files []string
	c := &cobra.Command{
		Use:   "render -f FILE",
		Short: "Print what YAML files would become in the kernel; changes nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if mode != "nftables" {
				return fmt.Errorf("--mode: %q is not built; nftables is", mode)
			}
			store, err := model.NewStore()
			if err != nil {
				return err
			}
			defer store.Close()
			for _, name := range files {
				if err := readFile(cmd, store, name); err != nil {
					return err
				}
			}
			snap := store.Snapshot()
			local, ok, problems := service.MakeLocal(snap, node)
			if node != "" && !ok {
				return fmt.Errorf("--node: the files have no Node %q", node)
			}
			for _, p := range problems {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", p.Error())
			}
			plans := map[model.Name]service.Plan{}
			for s := range snap.Services() {
				p, ok, problems := service.Make(snap, s.Name, node)
				for _, p := range problems {
					fmt.Fprintln(cmd.ErrOrStderr(), "warning:", p.Error())
				}
				if ok {
					plans[s.Name] = p
				}
			}
			fmt.Fprint(cmd.OutOrStdout(), nftables.Text(plans, local))
			return nil
		},
	}
	c.Flags().StringVar(&mode, "mode", "nftables", "the data plane")
	c.Flags().StringVar(&node, "node", "", "the node to render for")
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "a file of Services, EndpointSlices and Nodes; may be repeated")
	if err := c.MarkFlagRequired("filename"); err != nil {
		panic(err) // the flag is defined above
	}
	return c
}

func readFile(cmd *cobra.Command, store *model.Store, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	problems, err := manifest.Read(store, name, f)
	for _, p := range problems {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", p.Error())
	}
	return err
}
