// Command server is the cluster DNS without the rest of Wayleave, in two roles as in a pod: the agent, which follows an
// API server and feeds the records, and the server, which answers. It is compared and measured with CoreDNS.
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
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/server"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	source "wayleave.dev/source/kubernetes"
)

func main() {
	role, dir := flag.String("role", "", "agent or dns"),
		flag.String("dir", "", "folder of the sockets and the snapshot")
	master := flag.String("master", "", "URL of the API server, for the agent")
	listen := flag.String("listen", "", "address to serve at, for the agent")
	upstreams := flag.String("upstreams", "",
		"addresses and ports of upstream servers, separated by commas, for the agent")
	stubs := flag.String("stubs", "",
		"servers of domains, such as corp.example.=192.0.2.1:53, separated by commas, for the agent")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	var err error
	switch *role {
	case "agent":
		err = agent(ctx, *dir, *master, *listen, *upstreams, *stubs, log)
	case "dns":
		err = server.Run(ctx, server.Config{Socket: filepath.Join(*dir, "agent.sock"), StateFile: filepath.Join(*dir,
			"state.json"),
			HealthSocket: filepath.Join(*dir, "health.sock"), Log: log})
	default:
		err = fmt.Errorf("-role is %q; allowed: agent, dns", *role)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func agent(ctx context.Context, dir, master, listen, upstreams, stubs string, log *slog.Logger) error {
	client, err := kubernetes.NewForConfig(&rest.Config{Host: master, QPS: 1000, Burst: 1000})
	if err != nil {
		return err
	}
	feed, err := newFeed(listen, upstreams, stubs, log)
	if err != nil {
		return err
	}
	store, err := model.NewStore()
	if err != nil {
		return err
	}
	defer store.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "agent.sock")})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	start := func(fn func(context.Context) error) { wg.Go(func() { cancel(fn(ctx)) }) }
	start((&source.Source{Client: client, Store: store, NodeName: "node1", Log: log}).Run)
	start(func(ctx context.Context) error { return feed.Serve(ctx, l) })
	if err := store.WaitSynced(ctx, model.ServiceKind|model.EndpointSliceKind|model.NamespaceKind); err != nil {
		return err
	}
	names := &reconcile.Loop[model.Name, schema.Records]{
		Name: "dns", Store: store, Kinds: model.ServiceKind | model.EndpointSliceKind | model.NamespaceKind,
		Planner: reconcile.PlannerOf(dns.Keys, dns.Plan), Equal: schema.Equal, Target: feed,
		Health: reconcile.NewHealth(nil, nil), Log: log,
	}
	start(names.Run)
	wg.Wait()
	return context.Cause(ctx)
}

// newFeed returns a feed with everything except the records.
func newFeed(listen, upstreams, stubs string, log *slog.Logger) (*dns.Feed, error) {
	at, err := netip.ParseAddrPort(listen)
	if err != nil {
		return nil, err
	}
	settings := schema.Settings{Domains: []string{"cluster.local."},
		Clients: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}
	// The agent's defaults.
	settings.Pods, settings.VIPs = schema.PodsInsecure, []netip.Addr{at.Addr()}
	settings.Forwarding.Cache = schema.CacheLimits{Bytes: 16 << 20, TTL: time.Hour, NegativeTTL: 30 * time.Minute,
		Stale: 24 * time.Hour}
	var errs []error
	for u := range strings.SplitSeq(upstreams, ",") {
		ap, err := netip.ParseAddrPort(u)
		errs = append(errs, err)
		settings.Forwarding.Upstreams = append(settings.Forwarding.Upstreams, model.Nameserver{Addr: ap})
	}
	settings.Forwarding.Stubs = map[string][]model.Nameserver{}
	for stub := range strings.SplitSeq(stubs, ",") {
		domain, at, ok := strings.Cut(stub, "=")
		if !ok {
			continue
		}
		ap, err := netip.ParseAddrPort(at)
		errs = append(errs, err)
		settings.Forwarding.Stubs[domain] = append(settings.Forwarding.Stubs[domain], model.Nameserver{Addr: ap})
	}
	feed := &dns.Feed{Open: dns.OpenSocket, Log: log}
	feed.Configure(settings)
	feed.Listen([]schema.Socket{{Network: "udp", Addr: at}, {Network: "tcp", Addr: at}})
	return feed, errors.Join(errs...)
}
