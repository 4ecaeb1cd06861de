package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"wayleave.dev/config"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/iptables"
	"wayleave.dev/service/ipvs"
	"wayleave.dev/service/nftables"
	"wayleave.dev/source/manifest"
)

func renderCommand() *cobra.Command {
	var mode, node, scheduler string
	var files []string
	c := &cobra.Command{
		Use:   "render -f FILE",
		Short: "Print what YAML files would become in the kernel; changes nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			render, ok := renderers(scheduler)[mode]
			if !ok {
				return fmt.Errorf("--mode: %q is not built; nftables, iptables and ipvs are", mode)
			}
			if !slices.Contains(ipvs.Schedulers(), scheduler) {
				return fmt.Errorf("--scheduler: found %q; allowed: %s", scheduler,
					strings.Join(ipvs.Schedulers(), ", "))
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
			local, ok, problems := service.MakeNodeFacts(snap, node)
			if node != "" && !ok {
				return fmt.Errorf("--node: the files have no Node %q", node)
			}
			for _, p := range problems {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", p.Error())
			}
			planner := &service.Planner{Options: planOptions(node, config.Default())}
			plans := map[model.Name]service.Plan{}
			for s := range snap.Services() {
				p, ok, problems := planner.Plan(snap, s.Name)
				for _, p := range problems {
					fmt.Fprintln(cmd.ErrOrStderr(), "warning:", p.Error())
				}
				if ok {
					plans[s.Name] = p
				}
			}
			fmt.Fprint(cmd.OutOrStdout(), render(plans, local))
			return nil
		},
	}
	c.Flags().StringVar(&mode, "mode", modeNftables, "the data plane: nftables, iptables or ipvs")
	c.Flags().StringVar(&scheduler, "scheduler", "rr", "how the mode ipvs draws endpoints")
	c.Flags().StringVar(&node, "node", "", "the node to render for")
	c.Flags().StringArrayVarP(&files, "filename", "f", nil,
		"a file of Services, EndpointSlices and Nodes; may be repeated")
	if err := c.MarkFlagRequired("filename"); err != nil {
		panic(err) // the flag is defined above
	}
	return c
}

// renderers are the modes that print what they would program.
func renderers(scheduler string) map[string]func(map[model.Name]service.Plan, service.NodeFacts) string {
	return map[string]func(map[model.Name]service.Plan, service.NodeFacts) string{
		modeNftables: nftables.Text,
		modeIptables: iptables.Text,
		modeIPVS: func(plans map[model.Name]service.Plan, l service.NodeFacts) string {
			return ipvs.Text(plans, l, scheduler)
		},
	}
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
