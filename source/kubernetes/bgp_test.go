package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

func apiBGP(kind, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "wayleave.dev/v1alpha1", "kind": kind,
		"metadata": map[string]any{"name": name}, "spec": spec}}
}

// The kinds of BGP are watched once the API server knows them, and Secrets only in the one namespace.
func TestBGPIsWatchedOnceItsKindsAreDefined(t *testing.T) {
	a, client := newFakeAPI(t)
	a.unknown = map[string]bool{"bgppeers": true, "bgpconfigurations": true, "bgpadvertisements": true,
		"addresspools": true}
	a.put(t, "bgppeers", apiBGP("BGPPeer", "tor", map[string]any{"address": "192.0.2.1", "asn": int64(64512),
		"holdTime": "9s"}), "ADDED")
	a.put(t, "bgpconfigurations", apiBGP("BGPConfiguration", "default", map[string]any{"asn": int64(4200000000)}),
		"ADDED")
	a.put(t, "bgpadvertisements", apiBGP("BGPAdvertisement", "lb", map[string]any{}), "ADDED")
	a.put(t, "secrets", &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Namespace: model.PeersNamespace, Name: "tor"},
		Data:       map[string][]byte{"password": []byte("secret")}}, "ADDED")
	own, err := dynamic.NewForConfig(&rest.Config{Host: a.url, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	problems := make(chan model.Problem, 16)
	s := &Source{Client: client, Dynamic: own, BGP: true, PeerSecrets: true, Store: store, NodeName: "node1",
		Log: slog.New(slog.DiscardHandler), Report: func(_ string, _ model.Name, list []model.Problem) {
			for _, p := range list {
				problems <- p
			}
		}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = store.Close() })
	if err := store.WaitSynced(t.Context(), model.NodeKind|model.PeerSecretKind); err != nil {
		t.Fatal(err)
	}
	if store.Synced()&(model.BGPKinds&^model.PeerSecretKind) != 0 {
		t.Error("unknown kinds count as synced")
	}
	a.mu.Lock()
	a.unknown = nil
	a.mu.Unlock()
	if err := store.WaitSynced(t.Context(), model.BGPKinds); err != nil {
		t.Fatal(err)
	}
	snap := store.Snapshot()
	p, ok := snap.BGPPeer("tor")
	if !ok || p.ASN != 64512 || p.Timers.Hold != 9*time.Second || snap.BGP().ASN != 4200000000 ||
		snap.Count(model.BGPAdvertisementKind) != 1 {
		t.Errorf("%+v, %+v", p, snap.BGP())
	}
	if v, ok := snap.Password(model.SecretKey{Name: "tor", Key: "password"}); !ok || v != "secret" {
		t.Errorf("the password is %q", v)
	}
	a.mu.Lock()
	for path := range a.asked {
		if !strings.Contains(path, "/namespaces/wayleave-peers/secrets") {
			t.Errorf("Secrets are asked for by %s", path)
		}
	}
	a.mu.Unlock()
	watching(t, a, "bgppeers")
	a.put(t, "bgppeers", apiBGP("BGPPeer", "bad", map[string]any{"address": "192.0.2.1", "asn": "many"}), "ADDED")
	select {
	case p := <-problems:
		if p.Kind != "BGPPeer" || p.Object.Name != "bad" {
			t.Errorf("%+v", p)
		}
	case <-time.After(10 * time.Second):
		t.Error("an object that cannot be read is not reported")
	}
	a.put(t, "bgppeers", apiBGP("BGPPeer", "tor", nil), "DELETED")
	testnet.Eventually(t, 10*time.Second, func() error {
		if n := store.Snapshot().Count(model.BGPPeerKind); n != 0 {
			return fmt.Errorf("%d peers are left", n)
		}
		return nil
	})
}
