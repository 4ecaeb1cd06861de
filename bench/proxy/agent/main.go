// agent feeds the measured proxy: the source, the model and the loop of the real agent, with the benchmark's API
// server, and without changes to the kernel.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"wayleave.dev/ingress"
	"wayleave.dev/model"
	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/reconcile"
	source "wayleave.dev/source/kubernetes"
)

func main() {
	master, socket := flag.String("master", "", "URL of the API server"),
		flag.String("socket", "", "unix socket to feed proxies by")
	plain, encrypted := flag.String("plain", "", "address to serve HTTP at"),
		flag.String("tls", "", "address to serve HTTPS at")
	secrets := flag.String("secrets", "", "Secrets with certificates, namespace/name, separated by commas")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *master, *socket, *plain, *encrypted, *secrets); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

// sockets returns those that proxies listen on.
func sockets(plain, encrypted string) (list []schema.Socket, err error) {
	for _, s := range []struct {
		addr string
		tls  bool
	}{{plain, false}, {encrypted, true}} {
		addr, bad := netip.ParseAddrPort(s.addr)
		list, err = append(list, schema.Socket{Addr: addr, TLS: s.tls}), errors.Join(err, bad)
	}
	return list, err
}

func run(ctx context.Context, master, socket, plain, encrypted, named string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	list, err := sockets(plain, encrypted)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: master, QPS: 1000, Burst: 1000})
	if err != nil {
		return err
	}
	store, err := model.NewStore()
	if err != nil {
		return err
	}
	defer store.Close()
	f := feed.New(65533, feed.NewKeeper("", log), log)
	f.Configure(schema.Settings{ConnectionsPerClient: -1})
	f.Listen(list)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	start := func(fn func(context.Context) error) { wg.Go(func() { cancel(fn(ctx)) }) }
	secrets := source.NewSecrets(client, store, log)
	names := map[model.Name][]model.Name{}
	for n := range strings.SplitSeq(named, ",") {
		if ns, name, ok := strings.Cut(n, "/"); ok {
			names[model.Name{}] = append(names[model.Name{}], model.Name{Namespace: ns, Name: name})
		}
	}
	start(secrets.Run)
	if err := secrets.Sync(ctx, names); err != nil {
		return err
	}
	start((&source.Source{Client: client, Store: store, NodeName: "node1", Ingresses: true, Log: log}).Run)
	start(func(ctx context.Context) error { return f.Serve(ctx, l) })
	planner := ingress.NewPlanner(ingress.Settings{ClusterDomain: "cluster.local"})
	loop := &reconcile.Loop[ingress.Key, ingress.Plan]{
		Name: "ingress", Store: store, Kinds: ingress.Kinds, Planner: planner, Equal: ingress.Equal,
		Target: ingress.Target{Hosts: f.Hosts(), Backends: f.Backends(), Certificates: f.Certificates()},
		Health: reconcile.NewHealth(nil, nil), Log: log,
		Report: func(key string, problems []model.Problem) {
			for _, p := range problems {
				log.Warn("ingress", "key", key, "problem", p)
			}
		},
	}
	start(loop.Run)
	wg.Wait()
	return context.Cause(ctx)
}
