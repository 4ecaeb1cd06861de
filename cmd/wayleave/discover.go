package main

import (
	"github.com/spf13/cobra"

	kubesource "wayleave.dev/source/kubernetes"
)

// discoverCommand is the init container: it sees files of the node, for a moment and without a
// socket, so that the agent need not.
func discoverCommand() *cobra.Command {
	var root, out string
	c := &cobra.Command{
		Use:    "discover",
		Short:  "Write down what this node's kubelet was told (the init container)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return kubesource.Host{Root: root}.Discover().Write(out)
		},
	}
	c.Flags().StringVar(&root, "root", "/host", "where folders of the node are mounted")
	c.Flags().StringVar(&out, "out", nodeFacts, "the file to write")
	return c
}
