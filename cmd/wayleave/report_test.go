package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	policynft "wayleave.dev/networkpolicy/nftables"
	"wayleave.dev/reconcile"
)

func TestStatusText(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	r := report{Version: "v1", Node: "node1", Role: "owner", Mode: "nftables", Routing: "direct", Encryption: "none",
		Kernel: map[string]string{"release": "6.18"}, APIServer: "https://10.0.0.1:6443 (kubelet)",
		Objects: map[string]int{"Service": 3},
		Features: map[string]reconcile.State{
			"service": {Synced: true, Keys: 3, LastApplied: now.Add(-time.Minute),
				LastTook: 1230 * time.Microsecond, Repairs: 2},
			"dns": {Keys: 3, LastApplied: now, Error: "no socket", ErrorSince: now.Add(-5 * time.Second)}},
		Facts: map[string][]string{"dns": {"1 process"}}, Off: []string{"podnetwork"},
		Wrong: []string{"dns: no socket"}, Notes: []string{"NetworkPolicy shop/idle: spec.podSelector: selects no pod"}}
	want := `wayleave v1 on node1 (owner)
mode: nftables  routing: direct  encryption: none
API server: https://10.0.0.1:6443 (kubelet)
kernel: release 6.18
objects: Service 3
dns: failing since 5s, 3 programmed, last change 0s ago in 0s
  1 process
service: in sync, 3 programmed, last change 1m0s ago in 1.23ms, 2 foreign changes repaired
switched off: podnetwork
without effect:
  - NetworkPolicy shop/idle: spec.podSelector: selects no pod
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

// The isolated pods of the node, and as a metric: as many series as there are, with the
// names of policies cut where they are many.
func TestStatusOfPolicies(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	a := netip.MustParseAddr("10.244.1.5")
	if err := store.Write(func(w *model.Writer) {
		w.PutPod(&model.Pod{Name: model.Name{Namespace: "shop", Name: "web"}, IPs: []netip.Addr{a}})
	}); err != nil {
		t.Fatal(err)
	}
	p := &policies{mode: policynft.New(nft.NewFake(), nil)}
	var many []model.Name
	for i := range 40 {
		many = append(many, model.Name{Namespace: "shop", Name: fmt.Sprintf("policy-%d", i)})
	}
	if err := p.mode.Sync(t.Context(), map[networkpolicy.Key]networkpolicy.Entry{
		{Kind: networkpolicy.PodEntry, Direction: networkpolicy.Egress, Addr: a}: {Profile: "p", Policies: many},
		{Kind: networkpolicy.PodEntry, Addr: netip.MustParseAddr("10.244.1.6")}:  {Profile: "q"},
		{Kind: networkpolicy.PeerEntry, Profile: "q", Addr: a}: {
			Ports: networkpolicy.Ports{All: true}},
	}); err != nil {
		t.Fatal(err)
	}
	text := report{Policies: p.look(t.Context(), store.Snapshot())}.policies()
	for _, want := range []string{"POD", "shop/web", "10.244.1.5", "Egress", "shop/policy-39", "10.244.1.6",
		"until the pod is known"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if got := (report{}).policies(); !strings.Contains(got, "no pod of this node is isolated") {
		t.Errorf("without any it says %q", got)
	}
	r := prometheus.NewRegistry()
	r.MustRegister(policyMetrics{p, store})
	families, err := r.Gather()
	if err != nil || len(families) != 1 || len(families[0].Metric) != 2 {
		t.Fatalf("metrics are %v, %v", families, err)
	}
	for _, m := range families[0].Metric {
		for _, l := range m.Label {
			if l.GetName() == "policies" && len(l.GetValue()) > longestPolicies+len("…") {
				t.Errorf("the label has %d bytes", len(l.GetValue()))
			}
		}
	}
}
