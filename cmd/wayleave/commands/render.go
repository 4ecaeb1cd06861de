//go:build linux

package commands

import (
	"strings"

	"github.com/spf13/cobra"

	"wayleave.dev/agent/service"
	"wayleave.dev/explain/objects"
	"wayleave.dev/internal/cli"
	"wayleave.dev/model"
)

// renderResult is what render prints for machines.
type renderResult struct {
	Mode    string   `json:"mode"`
	Program []string `json:"program"`
}

func renderCommand() *cobra.Command {
	var r service.Rendering
	var files []string
	var out cli.Output
	c := &cobra.Command{
		Use:   "render -f FILE|-",
		Short: "Print the kernel program for the Services of YAML files; changes nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.Check(); err != nil {
				return cli.NoAnswer(err)
			}
			store, err := model.NewStore()
			if err != nil {
				return err
			}
			defer store.Close()
			if err := objects.Read(store, cmd.InOrStdin(), cmd.ErrOrStderr(), files...); err != nil {
				return err
			}
			var b strings.Builder
			if err := r.Render(store.Snapshot(), &b, cmd.ErrOrStderr()); err != nil {
				return err
			}
			return out.Print(cmd.OutOrStdout(), b.String(), renderResult{r.Mode, cli.Lines(b.String())})
		},
	}
	c.Flags().StringVar(&r.Mode, "mode", "nftables", "the data plane: nftables, iptables, ipvs or ebpf")
	c.Flags().StringVar(&r.Scheduler, "scheduler", "rr", "the scheduler of the mode ipvs")
	c.Flags().StringVar(&r.Node, "node", "", "the node to render for")
	c.Flags().StringArrayVarP(&files, "filename", "f", nil,
		"a file of Services, EndpointSlices and Nodes, - for stdin; may be repeated")
	require(c, "filename")
	out.Flag(c)
	return c
}
