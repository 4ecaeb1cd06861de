package fleet

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	kubesource "wayleave.dev/source/kubernetes"
)

// The channels of the protocol v5.channel.k8s.io.
const (
	stdout = 1
	stderr = 2
	status = 3
)

// serveExec plays the API server: it answers an exec as talk does.
func serveExec(t *testing.T, talk func(*http.Request, func(channel byte, text string))) Fleet {
	t.Helper()
	handler := websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			c.Protocol = []string{"v5.channel.k8s.io"}
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			talk(ws.Request(), func(channel byte, text string) {
				_, _ = ws.Write(append([]byte{channel}, text...))
			})
			_ = ws.Close()
		}}
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	config := &rest.Config{Host: srv.URL}
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return Fleet{Client: &kubesource.Client{Interface: api, REST: config, Server: srv.URL}, Namespace: "kube-system"}
}

func agentPod() Pod { return Pod{Namespace: "kube-system", Name: "wayleave-x", Node: "node1"} }

func TestACommandRunsInAPod(t *testing.T) {
	f := serveExec(t, func(r *http.Request, say func(byte, string)) {
		q := r.URL.Query()
		say(stdout, r.URL.Path+" "+q.Get("container")+" ")
		say(stdout, strings.Join(q["command"], " "))
		say(status, `{"metadata":{},"status":"Success"}`)
	})
	out, err := f.Exec(t.Context(), agentPod(), "agent", 1<<10, "/wayleave", "status", "-o", "json")
	want := "/api/v1/namespaces/kube-system/pods/wayleave-x/exec agent /wayleave status -o json"
	if err != nil || string(out) != want {
		t.Errorf("%v: %s; want %s", err, out, want)
	}
}

func TestACommandThatFailsSaysWhy(t *testing.T) {
	f := serveExec(t, func(_ *http.Request, say func(byte, string)) {
		say(stderr, "wayleave: the agent does not answer\n")
		say(status, `{"metadata":{},"status":"Failure","message":"exit","reason":"NonZeroExitCode",`+
			`"details":{"causes":[{"reason":"ExitCode","message":"1"}]}}`)
	})
	_, err := f.Exec(t.Context(), agentPod(), "agent", 1<<10, "/wayleave", "status")
	if err == nil || !strings.Contains(err.Error(),
		"kube-system/wayleave-x -c agent: wayleave: the agent does not answer") {
		t.Errorf("%v", err)
	}
}

// A container that prints without end costs a bounded amount of memory, and one that says nothing a bounded time.
func TestACommandHasBounds(t *testing.T) {
	f := serveExec(t, func(r *http.Request, say func(byte, string)) {
		if r.URL.Query().Get("command") == "silent" {
			time.Sleep(5 * time.Second)
			return
		}
		for range 10000 {
			say(stdout, strings.Repeat("x", 1000))
		}
	})
	out, err := f.Exec(t.Context(), agentPod(), "agent", 5000, "endless")
	if !errors.Is(err, errTooLong) || len(out) != 5000 {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := f.Exec(ctx, agentPod(), "agent", 5000, "silent"); err == nil {
		t.Error("a silent container is no error")
	}
}
