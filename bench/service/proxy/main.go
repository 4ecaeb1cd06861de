// Command proxy is the service proxy of the agent alone: the same source, model, loop
// and data plane, in the network namespace where it is started. It is what is measured
// beside kube-proxy.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
	source "wayleave.dev/source/kubernetes"
)

func main() {
	master, node := flag.String("master", "", "URL of the API server"), flag.String("node", "node1", "this node")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *master, *node); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, master, node string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	client, err := kubernetes.NewForConfig(&rest.Config{Host: master, QPS: 1000, Burst: 1000})
	if err != nil {
		return err
	}
	store, err := model.NewStore()
	if err != nil {
		return err
	}
	defer store.Close()
	conn, err := nft.NewKernel(0)
	if err != nil {
		return err
	}
	track, err := conntrack.NewKernel(0)
	if err != nil {
		return err
	}
	mode := nftables.New(conn, track)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	start := func(fn func(context.Context) error) { wg.Go(func() { cancel(fn(ctx)) }) }
	start((&source.Source{Client: client, Store: store, NodeName: node, Log: log}).Run)
	if err := store.WaitSynced(ctx, model.ServiceKind|model.EndpointSliceKind|model.NodeKind); err != nil {
		return err
	}
	if local, ok, _ := service.MakeLocal(store.Snapshot(), node); ok {
		mode.SetLocal(local)
	}
	foreign, err := mode.Watch(ctx)
	if err != nil {
		return err
	}
	services := &reconcile.Loop[model.Name, service.Plan]{
		Name: "service", Store: store, Kinds: model.ServiceKind | model.EndpointSliceKind, Keys: service.Keys, Equal: service.Equal,
		Plan: func(s model.Snapshot, k model.Name) (service.Plan, bool, []model.Problem) {
			return service.Make(s, k, node)
		},
		Target: mode, Foreign: foreign, Health: reconcile.NewHealth(nil, nil), Log: log,
	}
	start(services.Run)
	wg.Wait()
	return context.Cause(ctx)
}
