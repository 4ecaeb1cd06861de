// server is a measured proxy: the production process, or a few lines around Go's.
package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"wayleave.dev/proxy"
	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/process"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

func main() {
	feed := flag.String("feed", "", "unix socket of an agent, to run the production process")
	listen := flag.String("listen", "127.0.0.1:8080", "address to serve at")
	endpoints := flag.String("endpoints", "", "addresses of endpoints, separated by commas")
	profile := flag.String("cpuprofile", "", "file for a CPU profile that SIGUSR1 starts and SIGUSR2 ends")
	reverse := flag.Bool("reverseproxy", false, "measure Go's httputil.ReverseProxy instead of Wayleave's")
	pairs := flag.String("tls", "", "for ReverseProxy: address=file of a certificate with its key, separated by commas")
	routes := flag.String("routes", "", "for ReverseProxy: file with a host name in each line")
	flag.Parse()
	if *profile != "" {
		go profiles(*profile)
	}
	list := strings.Split(*endpoints, ",")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if *feed != "" {
		debug.SetMemoryLimit(448 << 20) // like wayleave proxy
		err := process.Run(ctx, process.Config{Socket: *feed, HealthSocket: filepath.Join(filepath.Dir(*feed),
			"health.sock"), AccessLog: io.Discard,
			Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
		if !errors.Is(err, context.Canceled) {
			log.Print(err)
		}
		return
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	if *reverse {
		go serveReverse(l, list[0], *pairs, *routes)
	} else {
		go serve(l, list)
	}
	<-ctx.Done()
}

// profiles writes a CPU profile for each pair of signals. The file gets its name once it is complete.
func profiles(file string) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	var out *os.File
	for s := range signals {
		var err error
		switch {
		case s == syscall.SIGUSR1 && out == nil:
			if out, err = os.Create(file + ".part"); err == nil {
				err = pprof.StartCPUProfile(out)
			}
		case s == syscall.SIGUSR2 && out != nil:
			pprof.StopCPUProfile()
			err = errors.Join(out.Close(), os.Rename(file+".part", file))
			out = nil
		}
		if err != nil {
			log.Fatal(err)
		}
	}
}

// serve is Wayleave's HTTP/1.1 alone.
func serve(l net.Listener, endpoints []string) {
	b := &schema.Backend{Key: "bench/app:80"}
	for _, e := range endpoints {
		b.Endpoints = append(b.Endpoints, schema.Endpoint{Addr: netip.MustParseAddrPort(e)})
	}
	p := &proxy.Proxy{Upstreams: upstream.NewSet(upstream.Defaults()), Tries: 3,
		Timeouts: proxy.Timeouts{Connect: 5 * time.Second, Send: 60 * time.Second, Read: 60 * time.Second}}
	p.Upstreams.Replace(map[string]*schema.Backend{b.Key: b})
	p.SetTable(table.Make(nil, map[string]*schema.Host{
		"bench.example": {Name: "bench.example",
			Paths: []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: b.Key}}},
		"": {Paths: []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: b.Key}}},
	}))
	s := &h1.Server{Limits: h1.DefaultLimits(), Handle: p.Handle}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go s.Serve(context.Background(), c, nil, false)
	}
}

// serveReverse is Go's own solution. With routes, each host has a ReverseProxy in a map.
func serveReverse(l net.Listener, endpoint, pairs, routes string) {
	transport := &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true}
	one := func() http.Handler {
		return &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(&url.URL{Scheme: "http", Host: endpoint})
				r.SetXForwarded()
				r.Out.Host = r.In.Host
			},
			Transport: transport,
		}
	}
	handler := one()
	if routes != "" {
		raw, err := os.ReadFile(routes)
		if err != nil {
			log.Fatal(err)
		}
		hosts := map[string]http.Handler{}
		for name := range strings.FieldsSeq(string(raw)) {
			hosts[name] = one()
		}
		handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if h := hosts[r.Host]; h != nil {
				h.ServeHTTP(w, r)
				return
			}
			http.NotFound(w, r)
		})
	}
	for pair := range strings.SplitSeq(pairs, ",") {
		if addr, file, ok := strings.Cut(pair, "="); ok {
			go func() { log.Fatal(http.ListenAndServeTLS(addr, file, file, handler)) }()
		}
	}
	log.Fatal(http.Serve(l, handler))
}
