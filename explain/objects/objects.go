// Package objects collects the objects that are explained, from files or by one list of a cluster.
package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/ingress"
	"wayleave.dev/model"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/source/manifest"
)

// listWithin is how long an API server may take to list what is explained.
const listWithin = 30 * time.Second

// Read fills the store from files; "-" is stdin. Problems of objects are written to warnings, which may be nil.
func Read(store *model.Store, stdin io.Reader, warnings io.Writer, files ...string) error {
	for _, name := range files {
		if err := read(store, stdin, warnings, name); err != nil {
			return err
		}
	}
	return nil
}

func read(store *model.Store, in io.Reader, warnings io.Writer, name string) error {
	if name == "-" {
		name = "stdin"
	} else {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	problems, err := manifest.Read(store, name, in)
	for _, p := range problems {
		if warnings != nil {
			fmt.Fprintln(warnings, "warning:", p.Error())
		}
	}
	return err
}

// ListPolicies fills the store with what policies are about, from a cluster.
func ListPolicies(ctx context.Context, at kubesource.Access, store *model.Store) error {
	client, err := at.Client()
	if err != nil {
		return err
	}
	source := &kubesource.Source{Client: client, Store: store, Policies: true, Log: slog.New(slog.DiscardHandler)}
	return during(ctx, source.Run, func(ctx context.Context) error {
		return listed(ctx, store,
			model.PodKind|model.NamespaceKind|model.NodeKind|model.ServiceKind|model.NetworkPolicyKind,
			"pods, namespaces, nodes, services and networkpolicies")
	})
}

// ListIngress fills the store with all that Ingress and policies are about, and the Secrets and ConfigMaps that
// Ingresses of ours name.
func ListIngress(ctx context.Context, at kubesource.Access, store *model.Store, s ingress.Settings) error {
	client, err := at.Client()
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	source := &kubesource.Source{Client: client, Store: store, Policies: true, Ingresses: true, Log: log}
	secrets, configMaps := kubesource.NewSecrets(client, store, log), kubesource.NewConfigMaps(client, store, log)
	run := func(ctx context.Context) error { return agent.All(ctx, source.Run, secrets.Run, configMaps.Run) }
	return during(ctx, run, func(ctx context.Context) error {
		kinds := model.AllKinds() &^ (model.AddressPoolKind | ingress.NamedKinds | model.BGPKinds | model.BGPRouteKind)
		if err := listed(ctx, store, kinds,
			"Ingresses, their classes, Services, pods, nodes and policies"); err != nil {
			return err
		}
		snap := store.Snapshot()
		named, maps := map[model.Name][]model.Name{}, map[model.Name][]model.Name{}
		for i := range snap.Ingresses() {
			if s.Ours(snap, i) {
				named[i.Name], maps[i.Name] = ingress.SecretsOf(i), ingress.ConfigMapsOf(i)
			}
		}
		if err := secrets.Sync(ctx, named); err != nil {
			return err
		}
		if err := configMaps.Sync(ctx, maps); err != nil {
			return err
		}
		return store.WaitSynced(ctx, ingress.NamedKinds)
	})
}

// during runs a source while fn does, for at most listWithin.
func during(ctx context.Context, source, fn func(context.Context) error) error {
	ctx, stop := context.WithTimeout(ctx, listWithin)
	done := make(chan struct{})
	go func() { defer close(done); _ = source(ctx) }() // ends by stop
	defer func() { stop(); <-done }()
	return fn(ctx)
}

// listed waits until kinds are in the store.
func listed(ctx context.Context, store *model.Store, kinds model.Kind, words string) error {
	err := store.WaitSynced(ctx, kinds)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the API server did not list %s within %s; may this account?", words, listWithin)
	}
	return err
}
