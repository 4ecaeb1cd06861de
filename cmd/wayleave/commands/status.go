//go:build linux

package commands

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
	"wayleave.dev/internal/cli"
)

func statusCommand() *cobra.Command {
	var ofWriter bool
	var socket string
	var out cli.Output
	lists := map[string]*bool{}
	c := &cobra.Command{
		Use:   "status",
		Short: "Say what is programmed on this node, and what is wrong",
		Long: "Asks the agent that owns this node. Run it on the node, or by\n" +
			"  kubectl -n kube-system exec ds/wayleave -c agent -- /wayleave status",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ofWriter {
				socket = agent.WriterSocket
			}
			r, err := askAgent(cmd, socket)
			if err != nil {
				return err
			}
			for _, l := range tables() {
				if *lists[l.Name] && out.IsText() {
					text, err := l.Text(r.Lists[l.Name], time.Now())
					fmt.Fprint(cmd.OutOrStdout(), text)
					return err
				}
			}
			return out.Print(cmd.OutOrStdout(), r.Text(time.Now()), r)
		},
	}
	for _, l := range tables() {
		lists[l.Name] = c.Flags().Bool(l.Name, false, l.Help)
	}
	c.Flags().BoolVar(&ofWriter, "writer", false,
		"ask the writer of this pod: kubectl -n kube-system exec deploy/wayleave-writer -- /wayleave status --writer")
	c.Flags().StringVar(&socket, "socket", agent.Socket, "the agent's socket")
	out.Flag(c)
	out.OldJSON(c)
	return c
}

// askAgent asks the agent or the writer at a socket for its report.
func askAgent(cmd *cobra.Command, socket string) (r agent.Report, err error) {
	raw, code, err := agent.Ask(cmd.Context(), socket, "/status")
	if err != nil {
		return r, fmt.Errorf("the agent does not answer on %s: %w", socket, err)
	}
	if code != http.StatusOK {
		return r, fmt.Errorf("the agent says: %s", raw)
	}
	if err := json.Unmarshal([]byte(raw), &r); err != nil {
		return r, fmt.Errorf("the agent's answer: %w", err)
	}
	return r, nil
}

// tables are those of features that have one.
func tables() (out []agent.List) {
	for _, f := range features.All() {
		if l, ok := f.(agent.Lister); ok {
			out = append(out, l.List())
		}
	}
	return out
}
