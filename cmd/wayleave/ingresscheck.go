package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/agent"
	"wayleave.dev/explain"
	"wayleave.dev/ingress"
	"wayleave.dev/model"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/source/manifest"
)

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
				err = readIngressFiles(store, files)
			} else {
				err = listIngress(cmd.Context(), store, check.Settings)
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
			if !carries {
				return exitStatus{code: statusDenied}
			}
			return nil
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
	from := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return unknown(err)
		}
		defer f.Close()
		from = f
	}
	list, err := explain.ReadRequests(from)
	if err != nil {
		return unknown(fmt.Errorf("%s: %w", name, err))
	}
	routing, differ := check.Routing(), 0
	for _, q := range list {
		if d := routing.Compare(q); d != nil {
			differ++
			fmt.Fprintln(cmd.OutOrStdout(), d)
		}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%d of %d requests are served otherwise than by ingress-nginx.\n", differ, len(list))
	if differ > 0 {
		return exitStatus{code: statusDenied}
	}
	return nil
}

func readIngressFiles(store *model.Store, files []string) error {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = manifest.Read(store, name, f) // Ingresses keep their problems
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// listIngress fills the store from a cluster: all that Ingress and policies are about, and
// the Secrets that Ingresses name.
func listIngress(ctx context.Context, store *model.Store, s ingress.Settings) error {
	client, err := kubesource.NewClient("", kubesource.Host{Facts: agent.NodeFacts})
	if err != nil {
		return err
	}
	running, stop := context.WithTimeout(ctx, listWithin)
	source := &kubesource.Source{Client: client, Store: store, Policies: true, Ingresses: true,
		Log: slog.New(slog.DiscardHandler)}
	secrets := &kubesource.Secrets{Client: client, Store: store, Log: slog.New(slog.DiscardHandler)}
	done := make(chan struct{})
	go func() { defer close(done); _ = agent.All(running, source.Run, secrets.Run) }() // ends by stop
	defer func() { stop(); <-done }()
	kinds := model.AllKinds() &^ (model.AddressPoolKind | model.SecretKind)
	if err := store.WaitSynced(running, kinds); errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the API server did not list Ingresses, their classes, Services, pods, nodes and policies "+
			"within %s; may this account?", listWithin)
	} else if err != nil {
		return err
	}
	snap, named := store.Snapshot(), map[model.Name][]model.Name{}
	for i := range snap.Ingresses() {
		if s.Ours(snap, i) {
			named[i.Name] = ingress.SecretsOf(i)
		}
	}
	if err := secrets.Sync(running, named); err != nil {
		return err
	}
	return store.WaitSynced(running, model.SecretKind)
}
