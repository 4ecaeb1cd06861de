package clustercommands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/agent/report"
	"wayleave.dev/internal/cli"
	"wayleave.dev/overview"
	"wayleave.dev/source/kubernetes/fleet"
)

// statusQuestion are the flags of status.
type statusQuestion struct {
	writer       bool
	socket, node string
	lists        map[string]*bool
	at           cli.Cluster
	out          cli.Output
}

func statusCommand(cluster cli.Cluster) *cobra.Command {
	q := statusQuestion{lists: map[string]*bool{}, at: cluster}
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what is programmed in the cluster or on a node, and problems",
		Long: "On a node, and in a container of the agent, it asks the agent that owns the node. Elsewhere " +
			"it asks the\n" +
			"agents of all nodes through the API server, which needs the right to create pods/exec, and prints a\n" +
			"table; with --node what one node says. A node that does not answer is a row.",
		Example: "  wayleave status\n  wayleave status --node NODE --vips\n" +
			"  kubectl -n kube-system exec ds/wayleave -c agent -- /wayleave status",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !q.isLocal(cmd) {
				return q.ofCluster(cmd)
			}
			if q.writer {
				q.socket = writerSocket
			}
			r, err := askAgent(cmd, q.socket)
			if err != nil {
				return err
			}
			return q.print(cmd, r)
		},
	}
	for _, l := range tables() {
		q.lists[l.Name] = c.Flags().Bool(l.Name, false, l.Help)
	}
	if agentSocket != "" {
		c.Flags().BoolVar(&q.writer, "writer", false,
			"ask the writer of this pod: kubectl -n kube-system exec deploy/wayleave-writer -- /wayleave "+
				"status --writer")
		c.Flags().StringVar(&q.socket, "socket", agentSocket, "on a node: the agent's socket")
	}
	c.Flags().StringVar(&q.node, "node", "", "what this node of the cluster says")
	q.out.Flag(c)
	q.out.OldJSON(c)
	q.at.Flags(c, system, "the namespace of Wayleave")
	return c
}

// isLocal reports whether the agent of this node is asked: its socket is there, and nothing names a cluster.
func (q *statusQuestion) isLocal(cmd *cobra.Command) bool {
	changed := cmd.Flags().Changed
	if q.writer || changed("socket") {
		return true
	}
	if q.node != "" || changed("kubeconfig") || changed("context") || changed("namespace") {
		return false
	}
	if q.at.IsAccount() {
		return true // in a container of the agent, which may wait for its socket
	}
	_, err := os.Stat(q.socket)
	return !errors.Is(err, fs.ErrNotExist)
}

// print prints what one agent says, or one table of it.
func (q *statusQuestion) print(cmd *cobra.Command, r report.Report) error {
	for _, l := range tables() {
		if *q.lists[l.Name] && q.out.IsText() {
			text, err := l.Text(r.Lists[l.Name], time.Now())
			fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		}
	}
	return q.out.Print(cmd.OutOrStdout(), r.Text(time.Now()), r)
}

func (q *statusQuestion) ofCluster(cmd *cobra.Command) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), readWithin+4*overview.AnswerWithin)
	defer cancel()
	client, err := q.at.Client()
	if err != nil {
		return cli.NoAnswer(err)
	}
	f := fleet.Fleet{Client: client, Namespace: q.at.Namespace}
	c, err := f.Read(ctx)
	if err != nil {
		return cli.NoAnswer(err)
	}
	o := overview.Of(ctx, f, c, q.at.Namespace, q.node)
	if q.node == "" {
		return q.out.Print(cmd.OutOrStdout(), o.Text(), o)
	}
	if len(o.Nodes) == 0 {
		return cli.NoAnswer(fmt.Errorf("--node: the cluster has no node %q", q.node))
	}
	if n := o.Nodes[0]; n.Report != nil {
		return q.print(cmd, *n.Report)
	}
	return cli.NoAnswer(errors.New(o.Wrong[0]))
}

// askAgent asks the agent or the writer at a socket for its report.
func askAgent(cmd *cobra.Command, socket string) (r report.Report, err error) {
	raw, code, err := askSocket(cmd.Context(), socket, "/status")
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
