// Command proxy is the service proxy without the rest of the agent: the same source, model, loop and data plane, in the
// network namespace in which it is started. It is compared with kube-proxy.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"wayleave.dev/kernel/conntrack"
	kernelipt "wayleave.dev/kernel/iptables"
	kernelipvs "wayleave.dev/kernel/ipvs"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
	"wayleave.dev/service/iptables"
	"wayleave.dev/service/ipvs"
	"wayleave.dev/service/nftables"
	source "wayleave.dev/source/kubernetes"
)

func main() {
	master, node := flag.String("master", "", "URL of the API server"), flag.String("node", "node1", "this node")
	mode := flag.String("mode", "nftables", "nftables, iptables-nft, iptables-legacy or ipvs")
	lock := flag.String("lock", "", "lock file of iptables-legacy, instead of /run/xtables.lock")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *master, *node, *mode, *lock); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

// dataPlane creates the mode of that name.
func dataPlane(name, lock string) (service.Mode, error) {
	track, err := conntrack.NewKernel(0)
	if err != nil {
		return nil, err
	}
	switch name {
	case "iptables-nft", "iptables-legacy":
		k, err := kernelipt.NewKernel(0, kernelipt.Flavour(strings.TrimPrefix(name, "iptables-")))
		if err != nil {
			return nil, err
		}
		k.LockFile = lock
		return iptables.New(k, track), nil
	case "nftables", "ipvs":
	default:
		return nil, fmt.Errorf("-mode is %q; allowed: nftables, iptables-nft, iptables-legacy, ipvs", name)
	}
	conn, err := nft.NewKernel(0)
	if err != nil {
		return nil, err
	}
	if name == "nftables" {
		return nftables.New(conn, track), nil
	}
	servers, err := kernelipvs.NewKernel(0)
	if err != nil {
		return nil, err
	}
	return ipvs.New(servers, nftables.NewIPVSCompanion(conn, track, nil), track, ipvs.Options{Scheduler: "rr",
		Drain: time.Minute}), nil
}

func run(ctx context.Context, master, node, modeName, lock string) error {
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
	mode, err := dataPlane(modeName, lock)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	start := func(fn func(context.Context) error) { wg.Go(func() { cancel(fn(ctx)) }) }
	start((&source.Source{Client: client, Store: store, NodeName: node, Log: log}).Run)
	if err := store.WaitSynced(ctx, model.ServiceKind|model.EndpointSliceKind|model.NodeKind); err != nil {
		return err
	}
	if local, ok, _ := service.MakeNodeFacts(store.Snapshot(), node); ok {
		mode.SetNodeFacts(local)
	}
	if runner, ok := mode.(interface{ Run(context.Context) error }); ok {
		start(runner.Run)
	}
	foreign, err := mode.Watch(ctx)
	if err != nil {
		return err
	}
	planner := &service.Planner{Options: func(model.Name) service.Options { return service.Options{Node: node} }}
	services := &reconcile.Loop[model.Name, service.Plan]{
		Name: "service", Store: store, Kinds: service.Kinds, Planner: planner, Equal: service.Equal,
		Target: mode, Foreign: foreign, Health: reconcile.NewHealth(nil, nil), Log: log,
	}
	start(services.Run)
	wg.Wait()
	return context.Cause(ctx)
}
