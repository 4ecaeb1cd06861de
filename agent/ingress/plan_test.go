package ingress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/ingress"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/source/manifest"
)

// namedSecrets notes what is to be watched.
type namedSecrets struct {
	mu   sync.Mutex
	have map[model.Name][]model.Name
}

func (n *namedSecrets) Sync(_ context.Context, plans map[model.Name][]model.Name) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.have = maps.Clone(plans)
	return nil
}

func (n *namedSecrets) Apply(_ context.Context, set map[model.Name][]model.Name, del []model.Name) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.Copy(n.have, set)
	for _, k := range del {
		delete(n.have, k)
	}
	return nil
}

func (n *namedSecrets) text() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, list := range n.have {
		for _, s := range list {
			out = append(out, s.String())
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), " ")
}

var _ reconcile.Target[model.Name, []model.Name] = (*namedSecrets)(nil)

// Secrets are those of Ingresses that are ours, which may change with the class alone.
func TestOnlySecretsOfOurIngressesAreNamed(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	read := func(yaml string) {
		t.Helper()
		if _, err := manifest.Read(store, "x", strings.NewReader(yaml)); err != nil {
			t.Fatal(err)
		}
	}
	const one = "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {namespace: shop, name: NAME}\nspec: " +
		"{ingressClassName: CLASS, tls: [{secretName: NAME-tls}], defaultBackend: {service: {name: web, port: " +
		"{number: 80}}}}\n---\n"
	named := func(name, class string) string { return strings.NewReplacer("NAME", name, "CLASS", class).Replace(one) }
	read(named("a", "wayleave") + named("b", "other"))
	n := &namedSecrets{}
	core := agent.NewCore(slog.New(slog.DiscardHandler), store, config.Config{}, nil)
	loop := secretLoop(core, ingress.Settings{DefaultCertificate: model.Name{Namespace: "infra", Name: "default-tls"}},
		n)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = loop.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = store.Close() })
	want := func(text string) {
		t.Helper()
		testnet.Eventually(t, 10*time.Second, func() error {
			if got := n.text(); got != text {
				return fmt.Errorf("named are %q, want %q", got, text)
			}
			return nil
		})
	}
	want("infra/default-tls shop/a-tls")
	read("apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: other}\nspec: {controller: " +
		"wayleave.dev/ingress}\n")
	want("infra/default-tls shop/a-tls shop/b-tls")
	if err := store.Write(func(w *model.Writer) {
		w.Delete(model.IngressKind, model.Name{Namespace: "shop",
			Name: "a"})
	}); err != nil {
		t.Fatal(err)
	}
	want("infra/default-tls shop/b-tls")
}

func TestSocketsOfANode(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	if got := fmt.Sprint(Sockets(addrs,
		false)); got != "[http://192.0.2.1:10080 https://192.0.2.1:10443 http://[2001:db8::1]:10080 "+
		"https://[2001:db8::1]:10443]" {
		t.Errorf("without ports of nodes: %s", got)
	}
	if got := fmt.Sprint(Sockets(addrs[:1],
		true)); got != "[http://192.0.2.1:10080 https://192.0.2.1:10443 http://192.0.2.1:80 https://192.0.2.1:443]" {
		t.Errorf("with ports of nodes: %s", got)
	}
}

// The ports 80 and 443 of a node are taken only while the cluster has an Ingress of ours, so that pods with
// hostNetwork can listen there on clusters that have none.
func TestHostPortsWaitForAnIngress(t *testing.T) {
	const node = "{apiVersion: v1, kind: Node, metadata: {name: node1}, status: {addresses: " +
		"[{type: InternalIP, address: 192.0.2.1}]}}\n---\n"
	const ours = "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: a}, spec: " +
		"{ingressClassName: wayleave}}\n---\n"
	other := strings.ReplaceAll(ours, "wayleave", "other")
	for _, c := range []struct {
		objects          string
		hostPorts, known bool
		want             string
	}{
		{ours, true, false, "[]"},
		{node, true, true, "[http://192.0.2.1:10080 https://192.0.2.1:10443]"},
		{node + other, true, true, "[http://192.0.2.1:10080 https://192.0.2.1:10443]"},
		{node + other + ours, false, true, "[http://192.0.2.1:10080 https://192.0.2.1:10443]"},
		{node + other + ours, true, true,
			"[http://192.0.2.1:10080 https://192.0.2.1:10443 http://192.0.2.1:80 https://192.0.2.1:443]"},
	} {
		store, err := model.NewStore()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := manifest.Read(store, "x", strings.NewReader(c.objects)); err != nil {
			t.Fatal(err)
		}
		cfg := config.Config{Ingress: config.Ingress{HostPorts: c.hostPorts}}
		f := &Feature{node: &agent.Node{Name: "node1",
			Core: agent.NewCore(slog.New(slog.DiscardHandler), store, cfg, nil)}}
		if list, known := f.sockets(store.Snapshot()); known != c.known || fmt.Sprint(list) != c.want {
			t.Errorf("%s (hostPorts %t): %v, %t; want %s, %t", c.objects, c.hostPorts, list, known, c.want, c.known)
		}
		store.Close()
	}
}

// All agents of a cluster find the same secret for affinity cookies, and none before they
// know the cluster; another cluster has another.
func TestTheSecretOfCookiesIsTheClusters(t *testing.T) {
	of := func(uid string) ([]byte, error) {
		store, err := model.NewStore()
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if s, err := cookieSecret(ctx, store); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before namespaces are known: %x, %v", s, err)
		}
		text := "apiVersion: v1\nkind: Namespace\nmetadata: {name: kube-system, uid: " + uid +
			"}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default, uid: other}\n"
		if _, err := manifest.Read(store, "x", strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		return cookieSecret(t.Context(), store)
	}
	a, err1 := of("6f3b8f4e-3f0a-4a39-9d5c-0d2a1c9b7e11")
	again, err2 := of("6f3b8f4e-3f0a-4a39-9d5c-0d2a1c9b7e11")
	b, err3 := of("0d2a1c9b-3f0a-4a39-9d5c-6f3b8f4e7e11")
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if len(a) != 32 || !bytes.Equal(a, again) || bytes.Equal(a, b) {
		t.Errorf("secrets %x, again %x, of another cluster %x", a, again, b)
	}
	if s, err := of(`""`); err == nil {
		t.Errorf("without a UID: %x", s)
	}
}
