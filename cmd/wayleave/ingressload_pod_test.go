package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// endpointChild has what a pod's process is: Service, its own name, address to listen at.
const endpointChild = "WAYLEAVE_TEST_ENDPOINT"

// Texts that pods answer with.
var (
	smallText = strings.Repeat("small text. ", 85)[:1000]
	bigText   = strings.Repeat("a big text. ", 8200)[:96000]
	slowText  = strings.Repeat("slowly. ", 100)
)

// A pod that is told to stop still takes what comes, as a preStop hook has it: it stops
// when nothing new has come for quietFor, and must get that far within quietWithin.
const (
	quietFor    = 500 * time.Millisecond
	quietWithin = 60 * time.Second
)

// TestLoadEndpointChild is the process of a pod.
func TestLoadEndpointChild(t *testing.T) {
	f := strings.Fields(os.Getenv(endpointChild))
	if len(f) != 3 {
		return // it is only there for others
	}
	endWithParent()
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGTERM)
	defer stop()
	p := &podServer{service: f[0], name: f[1]}
	l, err := net.Listen("tcp", f[2])
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: p}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	fmt.Println("ready")
	<-ctx.Done()
	// What is on its way through the proxy comes yet.
	for n, since, until := p.begun.Load(), time.Now(),
		time.Now().Add(quietWithin); time.Since(since) < quietFor; time.Sleep(5 * time.Millisecond) {
		if now := p.begun.Load(); now != n {
			n, since = now, time.Now()
		}
		if time.Now().After(until) {
			t.Fatalf("a pod that leaves still gets requests after %s", quietWithin)
		}
	}
	late := p.active.Load()
	end, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := srv.Shutdown(end); err != nil {
		t.Fatal(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Fatal(err)
	}
	fmt.Println("late", late)
	os.Exit(0) // before the test framework says more
}

// podServer answers as a pod.
type podServer struct {
	service, name string
	// begun counts requests, active those that are not answered yet.
	begun, active atomic.Int64
}

func (p *podServer) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if q.URL.Path == "/begun" {
		fmt.Fprint(w, p.begun.Load())
		return
	}
	p.begun.Add(1)
	p.active.Add(1)
	defer p.active.Add(-1)
	w.Header().Set("X-Service", p.service)
	kind := q.URL.Path[strings.LastIndexByte(q.URL.Path, '/')+1:]
	switch kind {
	case "ws":
		websocket.Server{Handler: p.socket}.ServeHTTP(w, q)
	case "slow": // a half now, a half then
		ms, _ := strconv.Atoi(q.URL.Query().Get("ms"))
		_, err := io.Copy(io.Discard, q.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, slowText[:400])
		_ = http.NewResponseController(w).Flush()
		time.Sleep(time.Duration(ms) * time.Millisecond)
		_, _ = io.WriteString(w, slowText[400:])
	case "big":
		_, _ = io.WriteString(w, bigText)
	case "post":
		n, err := io.Copy(io.Discard, q.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%d bytes", n)
	default:
		_, _ = io.WriteString(w, smallText)
	}
}

// socket sends its name, then echoes what it gets.
func (p *podServer) socket(c *websocket.Conn) {
	defer c.Close()
	err := websocket.Message.Send(c, p.name)
	for err == nil {
		var m []byte
		if err = websocket.Message.Receive(c, &m); err == nil {
			err = websocket.Message.Send(c, m)
		}
	}
}
