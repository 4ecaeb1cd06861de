package healthcheck

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

func name(s string) model.Name { return model.Name{Namespace: "default", Name: s} }

func ask(ns *testnet.NS, method string, port int) (*http.Response, map[string]any, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, addr string) (net.Conn, error) {
			return ns.Dial(network, addr, time.Second)
		}}}
	req, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	var body map[string]any
	if method == http.MethodGet {
		err = json.NewDecoder(resp.Body).Decode(&body)
	}
	return resp, body, err
}

// closed is a listener that nobody connects to.
type closed struct{ net.Listener }

func (closed) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (closed) Close() error              { return nil }

// A node opens so many ports and no more; a Service beyond is named, and those that have one keep it.
func TestPortsAreBounded(t *testing.T) {
	s := &Server{Log: slog.New(slog.DiscardHandler), Listen: func(uint16) (net.Listener, error) {
		return closed{}, nil
	}}
	set := map[model.Name]Check{}
	for i := range MaxPorts {
		set[name(fmt.Sprint("s", i))] = Check{uint16(30000 + i), 1}
	}
	if err := s.Apply(t.Context(), set, nil); err != nil {
		t.Fatal(err)
	}
	err := s.Apply(t.Context(), map[model.Name]Check{name("more"): {29999, 1}, name("s1"): {30001, 0}}, nil)
	var failed reconcile.KeyErrors[model.Name]
	if !errors.As(err, &failed) || len(failed) != 1 || !strings.Contains(failed[name("more")].Error(),
		"no more are opened") {
		t.Errorf("%v", err)
	}
	if err := s.Apply(t.Context(), map[model.Name]Check{name("more"): {29999, 1}},
		[]model.Name{name("s1")}); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
}

// A request whose bytes come one by one is answered.
func TestARequestInPartsIsAnswered(t *testing.T) {
	server, client := net.Pipe()
	go func() {
		defer client.Close()
		for _, b := range []byte("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n") {
			if _, err := client.Write([]byte{b}); err != nil {
				return
			}
		}
	}()
	if first, err := head(server); err != nil || string(first) != "HEAD " {
		t.Errorf("%q, %v", first, err)
	}
}

// A load balancer sees which nodes have endpoints, as kube-proxy says it.
func TestLoadBalancersSeeWhoHasEndpoints(t *testing.T) {
	ns := testnet.New(t, "node")
	healthy := true
	s := &Server{Healthy: func() bool { return healthy }, Log: slog.New(slog.DiscardHandler),
		Listen: func(port uint16) (l net.Listener, err error) {
			err = ns.Do(func() error { l, err = Listen(port); return err })
			return l, err
		}}
	defer s.Close()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	put := func(ends ...model.Endpoint) {
		t.Helper()
		err := store.Write(func(w *model.Writer) {
			w.PutService(&model.Service{Name: name("shop"), Type: model.LoadBalancer, ExternalLocal: true,
				HealthCheckPort: 31000})
			w.PutEndpointSlice(&model.EndpointSlice{Name: name("shop-1"), Service: "shop", Endpoints: ends})
		})
		if err != nil {
			t.Fatal(err)
		}
		c, ok, _ := Plan("node1", model.Reserved{})(store.Snapshot(), name("shop"))
		if !ok {
			t.Fatal("no check")
		}
		if err := s.Apply(t.Context(), map[model.Name]Check{name("shop"): c}, nil); err != nil {
			t.Fatal(err)
		}
	}
	here := func(i byte, ready bool) model.Endpoint {
		return model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, 0, i}), Ready: ready, Serving: ready, Node: "node1",
			Pod: fmt.Sprint("p", i)}
	}
	away := here(9, true)
	away.Node = "node2"
	for _, row := range []struct {
		ends    []model.Endpoint
		healthy bool
		want    int
		local   float64
	}{
		{[]model.Endpoint{here(1, true), here(2, true), here(3, false), away}, true, 200, 2},
		{[]model.Endpoint{here(3, false), away}, true, 503, 0},
		{[]model.Endpoint{here(1, true)}, false, 503, 1},
	} {
		put(row.ends...)
		healthy = row.healthy
		resp, body, err := ask(ns, http.MethodGet, 31000)
		if err != nil {
			t.Fatal(err)
		}
		of, _ := body["service"].(map[string]any)
		if resp.StatusCode != row.want || body["localEndpoints"] != row.local ||
			body["serviceProxyHealthy"] != row.healthy || of["name"] != "shop" || of["namespace"] != "default" ||
			resp.Header.Get("Content-Type") != "application/json" ||
			resp.Header.Get("X-Load-Balancing-Endpoint-Weight") != fmt.Sprint(row.local) {
			t.Errorf("%s %v %v, want %d with %v", resp.Status, resp.Header, body, row.want, row.local)
		}
	}
	if resp, _, err := ask(ns, http.MethodHead, 31000); err != nil || resp.StatusCode != 200 && resp.StatusCode != 503 {
		t.Errorf("HEAD: %v, %v", resp, err)
	}
	t.Run("a port that another service has", func(t *testing.T) {
		err := s.Apply(t.Context(), map[model.Name]Check{name("other"): {31000, 1}}, nil)
		var failed reconcile.KeyErrors[model.Name]
		if !errors.As(err, &failed) || !strings.Contains(failed[name("other")].Error(), "spec.healthCheckNodePort") {
			t.Errorf("%v", err)
		}
	})
	t.Run("bytes that are no request", func(t *testing.T) {
		c, err := ns.Dial("tcp", "127.0.0.1:31000", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		for range 100 {
			if _, err := c.Write(make([]byte, 1024)); err != nil {
				return // cut off, as it should be
			}
			time.Sleep(time.Millisecond)
		}
		t.Error("100 KiB without an end were read")
	})
	t.Run("the service goes", func(t *testing.T) {
		if err := s.Apply(t.Context(), nil, []model.Name{name("shop")}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := ask(ns, http.MethodGet, 31000); err == nil {
			t.Error("the port is open")
		}
	})
}
