package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

func apiPool(name string, addresses ...any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "wayleave.dev/v1alpha1", "kind": "AddressPool", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"addresses": addresses},
	}}
}

// While nobody has defined the kind, all others are watched; then the pools come within
// moments.
func TestPoolsComeOnceTheirKindIsDefined(t *testing.T) {
	a, client := newFakeAPI(t)
	a.unknown = map[string]bool{"addresspools": true}
	a.put(t, "services", apiService("web", 80), "ADDED")
	a.put(t, "addresspools", apiPool("lan", "192.0.2.0/24"), "ADDED")
	own, err := dynamic.NewForConfig(&rest.Config{Host: a.url, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	problems := make(chan int, 16)
	s := &Source{Client: client, Dynamic: own, Store: store, NodeName: "node1", Log: slog.New(slog.DiscardHandler),
		Report: func(kind string, _ model.Name, p []model.Problem) {
			if kind == "AddressPool" && len(p) > 0 {
				problems <- len(p)
			}
		}}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = store.Close() })
	if err := store.WaitSynced(t.Context(),
		model.ServiceKind|model.EndpointSliceKind|model.NodeKind|model.NamespaceKind|model.PodKind); err != nil {
		t.Fatal(err)
	}
	if store.Synced()&model.AddressPoolKind != 0 {
		t.Error("an unknown kind counts as synced")
	}
	a.mu.Lock()
	a.unknown = nil
	a.mu.Unlock()
	within, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if err := store.WaitSynced(within, model.AddressPoolKind); err != nil {
		t.Fatal(err)
	}
	if p, ok := store.Snapshot().AddressPool("lan"); !ok || len(p.Ranges) != 1 {
		t.Fatalf("the pool is %+v", p)
	}
	watching(t, a, "addresspools")
	a.put(t, "addresspools", apiPool("bad", "192.0.2.9-192.0.2.1", "198.51.100.1"), "ADDED")
	testnet.Eventually(t, 10*time.Second, func() error {
		if p, ok := store.Snapshot().AddressPool("bad"); !ok || len(p.Ranges) != 1 || len(problems) != 1 {
			return fmt.Errorf("%+v, %d problems", p, len(problems))
		}
		return nil
	})
	a.put(t, "addresspools", apiPool("lan"), "DELETED")
	testnet.Eventually(t, 10*time.Second, func() error {
		if _, ok := store.Snapshot().AddressPool("lan"); ok {
			return fmt.Errorf("still there")
		}
		return nil
	})
}

// Annotations are dropped as objects come in, but for those of Services that are read.
func TestOnlyUsedAnnotationsAreKept(t *testing.T) {
	a, client := newFakeAPI(t)
	svc := apiService("web", 80)
	svc.Spec.Type = "LoadBalancer"
	svc.Annotations = map[string]string{"wayleave.dev/address-pool": "lan", "other": "x"}
	a.put(t, "services", svc, "ADDED")
	store, _ := start(t, client)
	if err := store.WaitSynced(t.Context(), model.ServiceKind); err != nil {
		t.Fatal(err)
	}
	got, _ := store.Snapshot().Service(model.Name{Namespace: "default", Name: "web"})
	if got.LoadBalancer == nil || got.LoadBalancer.Pool != "lan" {
		t.Errorf("read %+v", got.LoadBalancer)
	}
	if kept := usedAnnotations(svc.Annotations); len(kept) != 1 {
		t.Errorf("kept %v", kept)
	}
}
