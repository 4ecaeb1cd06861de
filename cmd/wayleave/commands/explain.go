//go:build linux

package commands

import (
	"fmt"

	"github.com/spf13/cobra"

	"wayleave.dev/explain"
	"wayleave.dev/explain/objects"
	"wayleave.dev/internal/cli"
	"wayleave.dev/model"
)

func explainCommand() *cobra.Command {
	return cli.Group("explain", "Explain why traffic is allowed or denied", explainPolicyCommand())
}

// policyResult is the answer of explain policy.
type policyResult struct {
	Allowed     bool     `json:"allowed"`
	Explanation []string `json:"explanation"`
}

func explainPolicyCommand() *cobra.Command {
	var files []string
	var out cli.Output
	at := cluster()
	c := &cobra.Command{
		Use:   "policy FROM TO:PORT/PROTO",
		Short: "Explain which NetworkPolicy rule allows or denies a packet",
		Long: "FROM and TO are pods, as pod/NAMESPACE/NAME, pod/NAME or NAMESPACE/NAME, or addresses; IPv6 with a " +
			"port as [2001:db8::1]:80/TCP.\n" +
			"The port is the pod's own: a Service is translated before policies see the packet. PROTO is TCP, " +
			"UDP or SCTP.\n" +
			"With -f the objects are those of YAML files, otherwise those of the cluster.\n" +
			"Exits with 0 when the packet may pass, 1 when it is denied, 2 when that cannot be said.",
		Example: "  wayleave explain policy pod/default/a pod/default/b:80/TCP\n" +
			"  kubectl -n kube-system exec ds/wayleave -c agent -- /wayleave explain policy pod/default/a " +
			"pod/default/b:80/TCP",
		Args: mustBe(2, 2, "FROM and TO:PORT/PROTO are needed"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if at.Namespace == "" {
				at.Namespace = at.DefaultNamespace()
			}
			q, err := explain.ParseQuestion(args[0], args[1], at.Namespace)
			if err != nil {
				return cli.NoAnswer(err)
			}
			text, allowed, err := explainPolicy(cmd, at, files, q)
			if err != nil {
				return cli.NoAnswer(err)
			}
			if err := out.Print(cmd.OutOrStdout(), text, policyResult{allowed, cli.Lines(text)}); err != nil {
				return cli.NoAnswer(err)
			}
			return cli.Verdict(allowed)
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil,
		"a file of Pods, NetworkPolicies, Namespaces and Nodes, - for stdin; may be repeated")
	out.Flag(c)
	at.Flags(c, "", "the namespace of pods that are named without one; default: that of the context")
	return c
}

func explainPolicy(cmd *cobra.Command, at cli.Cluster, files []string, q explain.Question) (string, bool, error) {
	store, err := model.NewStore()
	if err != nil {
		return "", false, err
	}
	defer store.Close()
	if len(files) > 0 {
		err = objects.Read(store, cmd.InOrStdin(), cmd.ErrOrStderr(), files...)
	} else {
		err = objects.ListPolicies(cmd.Context(), at.Access, store)
	}
	if err != nil {
		return "", false, fmt.Errorf("objects: %w", err)
	}
	return explain.Policy(store.Snapshot(), q)
}
