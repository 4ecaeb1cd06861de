// server is a proxy of few lines around the packages that are measured: every request goes
// to the endpoints given.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"net/http"

	"wayleave.dev/proxy"
	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "address to serve at")
	endpoints := flag.String("endpoints", "", "addresses of endpoints, separated by commas")
	profile := flag.String("cpuprofile", "", "file for a CPU profile, written at SIGTERM")
	reverse := flag.Bool("reverseproxy", false, "measure Go's httputil.ReverseProxy in place of ours")
	flag.Parse()
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			log.Fatal(err)
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			log.Fatal(err)
		}
		defer pprof.StopCPUProfile()
	}
	list := strings.Split(*endpoints, ",")
	if *reverse {
		go serveReverse(l, list[0])
	} else {
		go serve(l, list)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
}

// serve is Wayleave.
func serve(l net.Listener, endpoints []string) {
	b := &table.Backend{Key: "bench/app:80"}
	for _, e := range endpoints {
		b.Endpoints = append(b.Endpoints, table.Endpoint{Addr: netip.MustParseAddrPort(e)})
	}
	p := &proxy.Proxy{Upstreams: upstream.NewSet(upstream.Defaults()), Tries: 3, Timeouts: proxy.Timeouts{Connect: 5 * time.Second, Send: 60 * time.Second, Read: 60 * time.Second}}
	p.Upstreams.Replace(map[string]*table.Backend{b.Key: b})
	p.SetTable(table.Make(nil, map[string]*table.Host{
		"bench.example": {Name: "bench.example", Paths: []table.Path{{Kind: table.Prefix, Path: "/", Backend: b.Key}}},
		"":              {Paths: []table.Path{{Kind: table.Prefix, Path: "/", Backend: b.Key}}},
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

// serveReverse is what a Go programmer has without us.
func serveReverse(l net.Listener, endpoint string) {
	p := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: endpoint})
			r.SetXForwarded()
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true},
	}
	log.Fatal(http.Serve(l, p))
}
