package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

func apiSecret(name, users string) *corev1.Secret {
	return &corev1.Secret{TypeMeta: metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Data:       map[string][]byte{"auth": []byte(users)}}
}

func shop(name string) model.Name { return model.Name{Namespace: "shop", Name: name} }

// runSecrets runs Secrets until the test ends.
func runSecrets(t *testing.T, client kubernetes.Interface) (*Named, *model.Store) {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := NewSecrets(client, store, slog.New(slog.DiscardHandler))
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = store.Close() })
	return s, store
}

// Only named Secrets are asked for, one by one; what nobody names any more is forgotten,
// and one that may not be read holds nobody up.
func TestOnlyNamedSecretsAreWatched(t *testing.T) {
	api, client := newFakeAPI(t)
	api.refused = map[string]bool{"closed": true}
	api.put(t, "secrets", apiSecret("users", "ann:{SHA}x"), "ADDED")
	api.put(t, "secrets", apiSecret("other", "bob:{SHA}x"), "ADDED")
	s, store := runSecrets(t, client)
	ctx := t.Context()
	if err := s.Sync(ctx, map[model.Name][]model.Name{shop("a"): {shop("users"), shop("absent")},
		shop("b"): {shop("users"), shop("closed")}}); err != nil {
		t.Fatal(err)
	}
	within, stop := context.WithTimeout(ctx, namedWithin/2)
	defer stop()
	if err := store.WaitSynced(within, model.SecretKind); err != nil {
		t.Fatalf("the named Secrets were not read: %v", err)
	}
	if got, ok := store.Snapshot().Secret(shop("users")); !ok || got.Users["ann"] != "{SHA}x" {
		t.Errorf("read %v, %v", got, ok)
	}
	if got, ok := store.Snapshot().Secret(shop("closed")); !ok || !strings.Contains(got.Wrong, "cannot be read") {
		t.Errorf("the one that may not be read is %v, %v", got, ok)
	}
	if got, ok := store.Snapshot().Secret(shop("absent")); !ok || !got.Missing {
		t.Errorf("the one that is not there is %v, %v", got, ok)
	}
	watching(t, api, "secrets")
	// b goes, a stays: users is still named.
	if err := s.Apply(ctx, nil, []model.Name{shop("b")}); err != nil {
		t.Fatal(err)
	}
	if _, ok := store.Snapshot().Secret(shop("users")); !ok || s.Watched() != 2 {
		t.Errorf("users is there: %v; %d watched", ok, s.Watched())
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		api.put(t, "secrets", apiSecret("users", "ann:{SHA}y"), "MODIFIED")
		if got, _ := store.Snapshot().Secret(shop("users")); got == nil || got.Users["ann"] != "{SHA}y" {
			return fmt.Errorf("the Secret is %v", got)
		}
		return nil
	})
	// a names another in place of both.
	if err := s.Apply(ctx, map[model.Name][]model.Name{shop("a"): {shop("other")}}, nil); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		if _, ok := store.Snapshot().Secret(shop("other")); !ok || store.Snapshot().Count(model.SecretKind) != 1 ||
			s.Watched() != 1 {
			return fmt.Errorf("%d Secrets in the model, %d watched",
				store.Snapshot().Count(model.SecretKind), s.Watched())
		}
		return nil
	})
	// A late word of an ended watch changes nothing.
	if err := (&namedWatch{all: s, name: shop("users")}).Update(apiSecret("users", "eve:{SHA}z")); err != nil {
		t.Fatal(err)
	}
	if _, ok := store.Snapshot().Secret(shop("users")); ok {
		t.Error("an ended watch wrote")
	}
	api.mu.Lock()
	defer api.mu.Unlock()
	for q := range api.asked {
		if !strings.Contains(q, "/namespaces/shop/secrets metadata.name=") {
			t.Errorf("asked for %s", q)
		}
	}
	if len(api.asked) != 4 {
		t.Errorf("asked for %v", api.asked)
	}
}

func TestIngressesAreWatchedWhenTheyAreOn(t *testing.T) {
	api, client := newFakeAPI(t)
	prefix := networkingv1.PathTypePrefix
	api.put(t, "ingresses", &networkingv1.Ingress{TypeMeta: metav1.TypeMeta{Kind: "Ingress",
		APIVersion: "networking.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "main",
			Annotations: map[string]string{"nginx.ingress.kubernetes.io/ssl-redirect": "false", "other": "x"}},
		Spec: networkingv1.IngressSpec{Rules: []networkingv1.IngressRule{{Host: "Shop.example",
			IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
				Paths: []networkingv1.HTTPIngressPath{{Path: "/", PathType: &prefix,
					Backend: networkingv1.IngressBackend{
						Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{
							Number: 80}}}}}}}}}}}, "ADDED")
	api.put(t, "ingressclasses", &networkingv1.IngressClass{TypeMeta: metav1.TypeMeta{Kind: "IngressClass",
		APIVersion: "networking.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{Name: "wayleave",
			Annotations: map[string]string{"ingressclass.kubernetes.io/is-default-class": "true"}}}, "ADDED")
	on, _ := startSource(t, &Source{Client: client, Ingresses: true})
	if err := on.WaitSynced(t.Context(), model.IngressKind|model.IngressClassKind); err != nil {
		t.Fatal(err)
	}
	i, ok := on.Snapshot().Ingress(shop("main"))
	if !ok || len(i.Rules) != 1 || i.Rules[0].Host != "shop.example" || len(i.Annotations) != 1 {
		t.Errorf("read %+v", i)
	}
	if c, ok := on.Snapshot().IngressClass("wayleave"); !ok || !c.Default {
		t.Errorf("the class is %+v", c)
	}
	off, _ := startSource(t, &Source{Client: client})
	if err := off.WaitSynced(t.Context(), model.ServiceKind|model.NodeKind); err != nil {
		t.Fatal(err)
	}
	if off.Synced()&model.IngressKind != 0 {
		t.Error("Ingresses were asked for though they are off")
	}
}

// ConfigMaps are watched as Secrets are, and follow changes.
func TestOnlyNamedConfigMapsAreWatched(t *testing.T) {
	api, client := newFakeAPI(t)
	configMap := func(name, value string) *corev1.ConfigMap {
		return &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Data: map[string]string{"X-A": value}}
	}
	api.refused = map[string]bool{"closed": true}
	api.put(t, "configmaps", configMap("fields", "1"), "ADDED")
	api.put(t, "configmaps", configMap("other", "1"), "ADDED")
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := NewConfigMaps(client, store, slog.New(slog.DiscardHandler))
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = store.Close() })
	if err := s.Sync(ctx, map[model.Name][]model.Name{
		shop("a"): {shop("fields"), shop("absent"), shop("closed")}}); err != nil {
		t.Fatal(err)
	}
	if err := store.WaitSynced(ctx, model.ConfigMapKind); err != nil {
		t.Fatal(err)
	}
	if got, ok := store.Snapshot().ConfigMap(shop("fields")); !ok || got.Data["X-A"] != "1" {
		t.Errorf("read %+v, %v", got, ok)
	}
	if got, ok := store.Snapshot().ConfigMap(shop("absent")); !ok || !got.Missing {
		t.Errorf("the one that is not there is %+v, %v", got, ok)
	}
	if got, ok := store.Snapshot().ConfigMap(shop("closed")); !ok || !strings.Contains(got.Wrong, "cannot be read") {
		t.Errorf("the one that may not be read is %+v, %v", got, ok)
	}
	watching(t, api, "configmaps")
	testnet.Eventually(t, 30*time.Second, func() error {
		api.put(t, "configmaps", configMap("fields", "2"), "MODIFIED")
		if got, _ := store.Snapshot().ConfigMap(shop("fields")); got == nil || got.Data["X-A"] != "2" {
			return fmt.Errorf("the ConfigMap is %+v", got)
		}
		return nil
	})
	api.mu.Lock()
	defer api.mu.Unlock()
	for q := range api.asked {
		if !strings.Contains(q, "/namespaces/shop/configmaps metadata.name=") {
			t.Errorf("asked for %s", q)
		}
	}
}

// Who names another Secret keeps the one before until the other one is read, or known not
// to be there, or does not come.
func TestASecretStaysUntilTheNextIsRead(t *testing.T) {
	api, client := newFakeAPI(t)
	api.put(t, "secrets", apiSecret("old", "ann:{SHA}x"), "ADDED")
	api.put(t, "secrets", apiSecret("new", "ann:{SHA}y"), "ADDED")
	s, store := runSecrets(t, client)
	ctx := t.Context()
	apply := func(name string) {
		t.Helper()
		if err := s.Apply(ctx, map[model.Name][]model.Name{shop("a"): {shop(name)}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sync(ctx, map[model.Name][]model.Name{shop("a"): {shop("old")}}); err != nil {
		t.Fatal(err)
	}
	if err := store.WaitSynced(ctx, model.SecretKind); err != nil {
		t.Fatal(err)
	}
	names := []string{"old", "new", "absent", "old"}
	for i, next := range names[1:] {
		was := shop(names[i])
		w, err := store.Watch(model.SecretKind)
		if err != nil {
			t.Fatal(err)
		}
		apply(next)
		testnet.Eventually(t, 10*time.Second, func() error {
			snap, _, err := w.Next(ctx)
			if err != nil {
				return err
			}
			_, before := snap.Secret(was)
			_, now := snap.Secret(shop(next))
			if !before && !now {
				t.Errorf("between %s and %s there was neither", was, next)
			}
			if before || !now {
				return fmt.Errorf("%s is there: %v, %s: %v", was, before, next, now)
			}
			return nil
		})
		w.Close()
	}
	// One that does not come is named, after a while.
	api.mu.Lock()
	api.broken = map[string]bool{"stuck": true}
	api.mu.Unlock()
	apply("stuck")
	if _, ok := store.Snapshot().Secret(shop("old")); !ok {
		t.Error("the Secret from before is gone at once")
	}
	testnet.Eventually(t, 2*namedWithin, func() error {
		got, ok := store.Snapshot().Secret(shop("stuck"))
		if _, old := store.Snapshot().Secret(shop("old")); !ok || old || !strings.Contains(got.Wrong,
			"cannot be read: within 10s: ") || got.Missing {
			return fmt.Errorf("it is %v, %v, %+v; the one before is there: %v", got, ok, got, old)
		}
		return nil
	})
}
