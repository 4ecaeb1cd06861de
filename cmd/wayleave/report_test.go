package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave.dev/reconcile"
)

func TestStatusText(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	r := report{Version: "v1", Node: "node1", Role: "owner", Mode: "nftables", Routing: "direct", Encryption: "none",
		Kernel: map[string]string{"release": "6.18"}, APIServer: "https://10.0.0.1:6443 (kubelet)", Objects: map[string]int{"Service": 3},
		Features: map[string]reconcile.State{
			"service": {Synced: true, Keys: 3, LastApplied: now.Add(-time.Minute), LastTook: 1230 * time.Microsecond, Repairs: 2},
			"dns":     {Keys: 3, LastApplied: now, Error: "no socket", ErrorSince: now.Add(-5 * time.Second)}},
		Facts: map[string][]string{"dns": {"1 process"}}, Off: []string{"podnetwork"}, Wrong: []string{"dns: no socket"}}
	want := `wayleave v1 on node1 (owner)
mode: nftables  routing: direct  encryption: none
API server: https://10.0.0.1:6443 (kubelet)
kernel: release 6.18
objects: Service 3
dns: failing since 5s, 3 programmed, last change 0s ago in 0s
  1 process
service: in sync, 3 programmed, last change 1m0s ago in 1.23ms, 2 foreign changes repaired
switched off: podnetwork
wrong:
  - dns: no socket
`
	if got := r.text(now); got != want {
		t.Errorf("status is\n%s\nwant\n%s", got, want)
	}
	r.Wrong = nil
	if got := r.text(now); !strings.HasSuffix(got, "\nnothing is wrong\n") {
		t.Errorf("with nothing wrong it ends: %s", got)
	}
}

const missionYAML = `apiVersion: v1
kind: Service
metadata: {name: backend}
spec:
  clusterIP: 10.96.100.50
  selector: {app: backend}
  ports: [{port: 80, targetPort: 8080}, {port: 0}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: backend-1, labels: {kubernetes.io/service-name: backend}}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints: [{addresses: [10.244.1.5]}, {addresses: [10.244.2.9]}, {addresses: [10.244.3.7]}]
`

func TestRenderTheMissionsService(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.yaml")
	if err := os.WriteFile(file, []byte(missionYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (out, errs string, err error) {
		var a, b bytes.Buffer
		c := root()
		c.SetOut(&a)
		c.SetErr(&b)
		c.SetArgs(args)
		err = c.ExecuteContext(t.Context())
		return a.String(), b.String(), err
	}
	out, errs, err := run("render", "-f", file)
	if err != nil || !strings.Contains(out, "10.96.100.50 . tcp . 80 . 2 : 10.244.3.7 . 8080") {
		t.Errorf("%v: %s", err, out)
	}
	if !strings.Contains(errs, "Service default/backend: spec.ports[1].port: 0 is not a port") {
		t.Errorf("the bad port is not named: %s", errs)
	}
	for _, tt := range []struct{ args, want string }{
		{"render -f " + file + " --mode ebpf", `--mode: "ebpf" is not built`},
		{"render -f " + file + " --node node9", `no Node "node9"`},
		{"render -f " + file + ".no", "no such file"},
		{"render", "filename"},
	} {
		if _, _, err := run(strings.Fields(tt.args)...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %s", tt.args, err, tt.want)
		}
	}
}
