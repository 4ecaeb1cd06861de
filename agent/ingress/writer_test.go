package ingress

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/agent/service"
	"wayleave.dev/config"
	"wayleave.dev/ingress"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/source/manifest"
	"wayleave.dev/writeback"
)

func testWriter(t *testing.T, yaml string) (*Feature, *agent.Cluster) {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if _, err := manifest.Read(store, "x", strings.NewReader(yaml)); err != nil {
		t.Fatal(err)
	}
	f := New()
	return f, agent.NewCluster(agent.NewCore(slog.New(slog.DiscardHandler), store, config.Default(),
		[]agent.Feature{f, service.New()}), "writer-1")
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
metadata:
  name: guarded
  namespace: default
  annotations:
    nginx.ingress.kubernetes.io/auth-type: basic
    nginx.ingress.kubernetes.io/auth-secret: gone
    nginx.ingress.kubernetes.io/auth-tls-secret: default/gone
    nginx.ingress.kubernetes.io/backend-protocol: HTTPS
    nginx.ingress.kubernetes.io/proxy-ssl-secret: default/gone
    nginx.ingress.kubernetes.io/auth-url: http://auth.example/
    nginx.ingress.kubernetes.io/custom-headers: gone
    nginx.ingress.kubernetes.io/auth-proxy-set-headers: gone
spec:
  ingressClassName: wayleave
  rules: [{host: b.example, http: {paths: [{path: /, pathType: Prefix,
    backend: {service: {name: web, port: {number: 80}}}}]}}]
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

// The writer finds by itself what is wrong with objects, and says nothing of Secrets and ConfigMaps, which
// it cannot read; what a node reports of them is added, and goes when the writer is no
// longer elected.
func TestTheWriterFindsWhatIsWrongWithObjects(t *testing.T) {
	_, c := testWriter(t, writerObjects)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- agent.All(ctx, service.New().Write(c)[0].Run,
			func(ctx context.Context) error { return judge(ctx, c, settings(c.Config)) })
	}()
	testnet.Eventually(t, 20*time.Second, func() error {
		text := fmt.Sprint(c.Problems.List())
		for _, want := range []string{"Ingress default/main: spec.rules[0]",
			"Service default/web: spec.externalIPs[0]"} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("%q is not among %s", want, text)
			}
		}
		return nil
	})
	if text := fmt.Sprint(c.Problems.List()); strings.Contains(text, "Secret") || strings.Contains(text,
		"ConfigMap") {
		t.Errorf("the writer speaks of Secrets or ConfigMaps: %s", text)
	}
	cancel()
	<-done
	if list := c.Problems.List(); len(list) > 0 {
		t.Errorf("a former writer still says %v", list)
	}
}

// Whatever annotation names a Secret or a ConfigMap, nodes report what is wrong with it, and the writer does not.
func TestFieldsThatNameObjects(t *testing.T) {
	page, err := os.ReadFile("../../docs/ingress-annotations.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, cell := range regexp.MustCompile("(?m)^\\| ([a-z0-9-]+)").FindAllSubmatch(page, -1) {
		key := "nginx.ingress.kubernetes.io/" + string(cell[1])
		i := &model.Ingress{Name: model.Name{Namespace: "default", Name: "main"},
			Annotations: map[string]string{"nginx.ingress.kubernetes.io/auth-type": "basic", key: "x"}}
		names := len(ingress.SecretsOf(i))+len(ingress.ConfigMapsOf(i)) > 0
		if names {
			found++
		}
		if field := "metadata.annotations[" + key + "]"; writeback.NamesObject(field) != names {
			t.Errorf("%s names an object: %t", field, names)
		}
	}
	if found < 5 {
		t.Errorf("only %d annotations of the page name an object", found)
	}
}

// Of Ingresses a node reports only what concerns Secrets, only of those that are ours, and
// only if it serves them.
func TestWhatNodesReportOfIngresses(t *testing.T) {
	f, c := testWriter(t, writerObjects)
	c.Config.Ingress.NodeSelector = map[string]string{"ingress": "yes"}
	at := func(name string) model.Problem {
		return model.Problem{Kind: "Ingress", Object: model.Name{Namespace: "default", Name: name},
			Field: "spec.tls[0].secretName", Reason: "r"}
	}
	for _, tc := range []struct {
		node, ingress string
		want          bool
	}{{"node1", "main", true}, {"node2", "main", false}, {"node3", "main", false}, {"node1", "theirs", false},
		{"node1", "gone", false}} {
		if got := f.Accepts(c, tc.node, at(tc.ingress)); got != tc.want {
			t.Errorf("%s about %s: %t", tc.node, tc.ingress, got)
		}
	}
	for node, want := range map[string]bool{"node1": true, "node2": false} {
		a := &agent.Node{Name: node, Core: c.Core}
		if got := a.Reports(at("main")); got != want {
			t.Errorf("%s reports Ingresses: %t", node, got)
		}
		own := model.Problem{Kind: "Node", Object: model.Name{Name: node}, Reason: "r"}
		other := model.Problem{Kind: "Node", Object: model.Name{Name: "node3"}, Reason: "r"}
		if !a.Reports(own) || a.Reports(other) || a.Reports(model.Problem{Kind: "Service", Reason: "r"}) {
			t.Errorf("%s does not report its own problems only", node)
		}
	}
}

// A node whose labels move it into ingress.nodeSelector or out of it starts its agent again.
func TestServingFollowsTheNodesLabels(t *testing.T) {
	f, c := testWriter(t, writerObjects)
	c.Config.Ingress.NodeSelector = map[string]string{"ingress": "yes"}
	f.node = &agent.Node{Name: "node2", Core: c.Core}
	watch, err := c.Store.Watch(model.NodeKind)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	serves, err := f.nodeServes(t.Context(), watch, nil)
	if err != nil || serves {
		t.Fatalf("node2 serves: %t, %v", serves, err)
	}
	if err := c.Store.Write(func(tx *model.Writer) {
		tx.PutNode(&model.Node{Name: "node2", Labels: map[string]string{"ingress": "yes"}})
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.nodeServes(t.Context(), watch, &serves); err == nil || !strings.Contains(err.Error(),
		"ingress.nodeSelector") {
		t.Errorf("after the label: %v", err)
	}
	if text := f.Facts(f.node, c.Store.Snapshot()); len(text) != 1 ||
		!strings.Contains(text[0], "serves no Ingresses") {
		t.Errorf("status says %v", text)
	}
}
