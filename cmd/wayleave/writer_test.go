package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"wayleave.dev/config"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/source/manifest"
	"wayleave.dev/writeback"
)

func testWriter(t *testing.T, yaml string) *writer {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if _, err := manifest.Read(store, "x", strings.NewReader(yaml)); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	w := &writer{name: "writer-1", cfg: config.Default(), log: log, store: store, problems: writeback.NewProblems(log),
		wrong: map[string]string{}, client: &kubesource.Client{}}
	w.reports = &writeback.NodeReports{Accept: w.accepts, Log: log, Problems: func(node string, list []model.Problem) {
		w.problems.Set("node", node, list)
	}}
	return w
}

const writerObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: kube-system}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: wayleave}
spec: {controller: wayleave.dev/ingress}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: main, namespace: default}
spec:
  ingressClassName: wayleave
  tls: [{hosts: [a.example], secretName: gone}]
  rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix,
    backend: {service: {name: nowhere, port: {number: 80}}}}]}}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: theirs, namespace: default}
spec: {ingressClassName: other, defaultBackend: {service: {name: nowhere, port: {number: 80}}}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{port: 80}], externalIPs: ["2001:db8::1"]}
---
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {ingress: "yes"}}
status: {conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Node
metadata: {name: node2}
status: {conditions: [{type: Ready, status: "True"}]}
`

// The writer finds by itself what is wrong with objects, and says nothing of Secrets, which
// it cannot read; what a node reports of them is added, and goes when the writer is no
// longer elected.
func TestTheWriterFindsWhatIsWrongWithObjects(t *testing.T) {
	w := testWriter(t, writerObjects)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- all(ctx, w.judgeServices, func(ctx context.Context) error {
			return w.judgeIngresses(ctx,
				ingressSettings(w.cfg))
		})
	}()
	testnet.Eventually(t, 20*time.Second, func() error {
		text := fmt.Sprint(w.problems.List())
		for _, want := range []string{"Ingress default/main: spec.rules[0]",
			"Service default/web: spec.externalIPs[0]"} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("%q is not among %s", want, text)
			}
		}
		return nil
	})
	if text := fmt.Sprint(w.problems.List()); strings.Contains(text, "Secret") {
		t.Errorf("the writer speaks of Secrets: %s", text)
	}
	cancel()
	<-done
	if list := w.problems.List(); len(list) > 0 {
		t.Errorf("a former writer still says %v", list)
	}
}

// Of Ingresses a node reports only what concerns Secrets, only of those that are ours, and
// only if it serves them.
func TestWhatNodesReportOfIngresses(t *testing.T) {
	w := testWriter(t, writerObjects)
	w.cfg.Ingress.NodeSelector = map[string]string{"ingress": "yes"}
	at := func(name string) model.Problem {
		return model.Problem{Kind: "Ingress", Object: model.Name{Namespace: "default", Name: name},
			Field: "spec.tls[0].secretName", Reason: "r"}
	}
	for _, tc := range []struct {
		node, ingress string
		want          bool
	}{{"node1", "main", true}, {"node2", "main", false}, {"node3", "main", false}, {"node1", "theirs", false},
		{"node1", "gone", false}} {
		if got := w.accepts(tc.node, at(tc.ingress)); got != tc.want {
			t.Errorf("%s about %s: %t", tc.node, tc.ingress, got)
		}
	}
	log := slog.New(slog.DiscardHandler)
	for node, want := range map[string]bool{"node1": true, "node2": false} {
		a := &agent{node: node, cfg: w.cfg, store: w.store, problems: writeback.NewProblems(log)}
		if got := a.reports(at("main")); got != want {
			t.Errorf("%s reports Ingresses: %t", node, got)
		}
		own := model.Problem{Kind: "Node", Object: model.Name{Name: node}, Reason: "r"}
		other := model.Problem{Kind: "Node", Object: model.Name{Name: "node3"}, Reason: "r"}
		if !a.reports(own) || a.reports(other) || a.reports(model.Problem{Kind: "Service", Reason: "r"}) {
			t.Errorf("%s does not report its own problems only", node)
		}
	}
}

// Nothing of a node is mounted into the writer: it makes kube-dns at the address that
// kubelets give to pods, once an agent has reported it.
func TestKubeDNSIsMadeWhereKubeletsSay(t *testing.T) {
	w := testWriter(t, writerObjects)
	c := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}})
	w.client.Interface = c
	w.reports.Client, w.reports.Namespace = c, writeback.PeersNamespace
	w.store.MarkSynced(model.AllKinds())
	if err := w.ensureDNSOnce(t.Context()); err == nil || !strings.Contains(err.Error(), "clusterDNS") {
		t.Fatalf("before a report: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.reports.Run(ctx) }()
	defer func() { cancel(); <-done }()
	lease := writeback.NodeLease{Client: c, Namespace: writeback.PeersNamespace, Node: "node1"}
	if err := lease.Kubelet(t.Context(),
		writeback.KubeletDNS{VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.53")}}); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 20*time.Second, func() error { return w.ensureDNSOnce(t.Context()) })
	svc, err := c.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil || svc.Spec.ClusterIP != "10.96.0.53" {
		t.Errorf("kube-dns is at %s, %v", svc.Spec.ClusterIP, err)
	}
}

// A node whose labels move it into ingress.nodeSelector or out of it starts its agent again.
func TestServingFollowsTheNodesLabels(t *testing.T) {
	w := testWriter(t, writerObjects)
	cfg := w.cfg
	cfg.Ingress.NodeSelector = map[string]string{"ingress": "yes"}
	f := &ingressFeed{a: &agent{node: "node2", cfg: cfg, store: w.store}}
	watch, err := w.store.Watch(model.NodeKind)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	serves, err := f.nodeServes(t.Context(), watch, nil)
	if err != nil || serves {
		t.Fatalf("node2 serves: %t, %v", serves, err)
	}
	if err := w.store.Write(func(tx *model.Writer) {
		tx.PutNode(&model.Node{Name: "node2", Labels: map[string]string{"ingress": "yes"}})
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.nodeServes(t.Context(), watch, &serves); err == nil || !strings.Contains(err.Error(),
		"ingress.nodeSelector") {
		t.Errorf("after the label: %v", err)
	}
	if text := f.facts(w.store.Snapshot()); len(text) != 1 || !strings.Contains(text[0], "serves no Ingresses") {
		t.Errorf("status says %v", text)
	}
}
