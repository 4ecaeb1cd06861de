package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/agent"
	"wayleave.dev/explain"
	"wayleave.dev/model"
	kubesource "wayleave.dev/source/kubernetes"
)

// exitStatus is an error that says which status the program ends with. Without a cause
// nothing is printed.
type exitStatus struct {
	code  int
	cause error
}

// Error implements error.
func (e exitStatus) Error() string {
	if e.cause == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.cause.Error()
}

// Unwrap gives the cause.
func (e exitStatus) Unwrap() error { return e.cause }

// The statuses of explain policy, as those of grep.
const (
	statusDenied = 1
	statusError  = 2
)

// listWithin is how long an API server may take to list what policies are about.
const listWithin = 30 * time.Second

func explainCommand() *cobra.Command {
	c := &cobra.Command{Use: "explain", Short: "Say why traffic passes, or does not", Args: cobra.NoArgs}
	c.AddCommand(explainPolicyCommand())
	return c
}

func explainPolicyCommand() *cobra.Command {
	var files []string
	c := &cobra.Command{
		Use:   "policy FROM TO:PORT/PROTO",
		Short: "What NetworkPolicies say of a packet, and which rule decides",
		Long: "FROM and TO are pods, as NS/NAME or pod/NS/NAME, or addresses; IPv6 with a port as " +
			"[2001:db8::1]:80/TCP.\n" +
			"The port is the pod's own: a Service is translated before policies see the packet. PROTO is TCP, " +
			"UDP or SCTP.\n" +
			"With -f the objects are those of YAML files, else those of the cluster: that of KUBECONFIG, or in the " +
			"agent's container\n" +
			"  kubectl -n kube-system exec ds/wayleave -c agent -- /wayleave explain policy default/a " +
			"default/b:80/TCP\n" +
			"Exits with 0 when the packet may pass, 1 when it is denied, 2 when that cannot be said.",
		Args: func(cmd *cobra.Command, args []string) error { return unknown(cobra.ExactArgs(2)(cmd, args)) },
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := explain.ParseQuestion(args[0], args[1])
			if err != nil {
				return unknown(err)
			}
			store, err := model.NewStore()
			if err != nil {
				return unknown(err)
			}
			defer store.Close()
			if err := policyObjects(cmd, store, files); err != nil {
				return unknown(err)
			}
			text, allowed, err := explain.Policy(store.Snapshot(), q)
			if err != nil {
				return unknown(err)
			}
			fmt.Fprint(cmd.OutOrStdout(), text)
			if !allowed {
				return exitStatus{code: statusDenied}
			}
			return nil
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil,
		"a file of Pods, NetworkPolicies, Namespaces and Nodes; may be repeated")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unknown(err) })
	return c
}

func unknown(err error) error {
	if err == nil {
		return nil
	}
	return exitStatus{statusError, err}
}

// policyObjects fills the store from files, or by one list of a cluster.
func policyObjects(cmd *cobra.Command, store *model.Store, files []string) error {
	for _, name := range files {
		if err := readFile(cmd, store, name); err != nil {
			return err
		}
	}
	if len(files) > 0 {
		return nil
	}
	client, err := kubesource.NewClient("", kubesource.Host{Facts: agent.NodeFacts})
	if err != nil {
		return err
	}
	return listOnce(cmd.Context(), &kubesource.Source{Client: client, Store: store, Policies: true,
		Log: slog.New(slog.DiscardHandler)})
}

// listOnce runs the source until everything that policies ask for is in the store.
func listOnce(ctx context.Context, s *kubesource.Source) error {
	running, stop := context.WithTimeout(ctx, listWithin)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(running) }() // ends by stop
	defer func() { stop(); <-done }()
	err := s.Store.WaitSynced(running,
		model.PodKind|model.NamespaceKind|model.NodeKind|model.ServiceKind|model.NetworkPolicyKind)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the API server did not list pods, namespaces, nodes, services and networkpolicies within "+
			"%s; may this account?", listWithin)
	}
	return err
}
