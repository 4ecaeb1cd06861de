//go:build linux

package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/explain"
	"wayleave.dev/explain/objects"
	"wayleave.dev/ingress"
	"wayleave.dev/model"
)

// The statuses of explain policy, as those of grep.
const (
	statusDenied = 1
	statusError  = 2
)

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
			if len(files) > 0 {
				err = objects.Read(store, cmd.ErrOrStderr(), files...)
			} else {
				err = objects.ListPolicies(cmd.Context(), store)
			}
			if err != nil {
				return unknown(err)
			}
			text, allowed, err := explain.Policy(store.Snapshot(), q)
			if err != nil {
				return unknown(err)
			}
			fmt.Fprint(cmd.OutOrStdout(), text)
			return verdict(allowed)
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil,
		"a file of Pods, NetworkPolicies, Namespaces and Nodes; may be repeated")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unknown(err) })
	return c
}

// verdict is the status of an answer.
func verdict(good bool) error {
	if good {
		return nil
	}
	return exitStatus{code: statusDenied}
}

// unknown is the status when there is no answer.
func unknown(err error) error {
	if err == nil {
		return nil
	}
	return exitStatus{statusError, err}
}

func ingressCommand() *cobra.Command {
	c := &cobra.Command{Use: "ingress", Short: "HTTP routing by Ingress", Args: cobra.NoArgs}
	c.AddCommand(ingressCheckCommand())
	return c
}

func ingressCheckCommand() *cobra.Command {
	var files []string
	var requests string
	var adopt, oneNamespace bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Say beforehand what of a cluster's Ingresses carries over, and which policies would cut the proxies",
		Long: "Nothing is changed. With -f the objects are those of YAML files, as of\n" +
			"  kubectl get ingress,ingressclass,svc,endpointslice,pod,netpol,node,ns -A -o yaml\n" +
			"else those of the cluster: that of KUBECONFIG, or in the agent's container\n" +
			"  kubectl -n kube-system exec ds/wayleave -c agent -- /wayleave ingress check\n" +
			"With --requests it plays a list of requests against the routing as ingress-nginx makes it and as\n" +
			"Wayleave does, and prints each difference. A line is METHOD URL, and fields with tabs before them.\n" +
			"Exits with 0 when all carries over, 1 when something does not, 2 when that cannot be said.",
		Args: func(cmd *cobra.Command, args []string) error { return unknown(cobra.NoArgs(cmd, args)) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := model.NewStore()
			if err != nil {
				return unknown(err)
			}
			defer store.Close()
			check := explain.IngressCheck{Settings: ingress.Settings{AdoptNginx: adopt, Default: true,
				HostsOfOneNamespace: oneNamespace}, Now: time.Now()}
			if len(files) > 0 {
				err = objects.Read(store, nil, files...) // Ingresses keep their problems
			} else {
				err = objects.ListIngress(cmd.Context(), store, check.Settings)
			}
			if err != nil {
				return unknown(err)
			}
			check.Snapshot = store.Snapshot()
			if len(files) > 0 {
				check.NoSecrets, check.NoServices = check.Snapshot.Count(model.SecretKind) == 0,
					check.Snapshot.Count(model.ServiceKind) == 0
			}
			if requests != "" {
				return playRequests(cmd, check, requests)
			}
			text, carries := check.Text()
			fmt.Fprint(cmd.OutOrStdout(), text)
			return verdict(carries)
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "a file of Ingresses and what they name; may be repeated")
	c.Flags().StringVar(&requests, "requests", "",
		"a file of requests to compare with ingress-nginx, - for the standard input")
	c.Flags().BoolVar(&adopt, "adopt-nginx", true, "as with the setting ingress.adoptNginx")
	c.Flags().BoolVar(&oneNamespace, "hosts-of-one-namespace", false, "as with the setting ingress.hostsOfOneNamespace")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unknown(err) })
	return c
}

// playRequests compares how requests of a file are served.
func playRequests(cmd *cobra.Command, check explain.IngressCheck, name string) error {
	var differ bool
	err := withFile(cmd, name, func(in io.Reader) (err error) {
		if differ, err = check.Play(in, cmd.OutOrStdout()); err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
		return err
	})
	if err != nil {
		return unknown(err)
	}
	return verdict(!differ)
}
