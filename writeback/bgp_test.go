package writeback

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	k8stesting "k8s.io/client-go/testing"

	"wayleave.dev/api"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/source"
)

// bgpAPI is an API server with some objects of BGP.
func bgpAPI(t *testing.T) (*dynamicfake.FakeDynamicClient, *model.Store) {
	t.Helper()
	kinds := map[schema.GroupVersionResource]string{}
	for _, d := range api.BGPDefinitions() {
		kinds[bgpResource(d.Kind)] = d.Kind + "List"
	}
	object := func(kind, name string, spec map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": api.GroupVersion, "kind": kind,
			"metadata": map[string]any{"name": name, "generation": int64(7)}, "spec": spec}}
	}
	client := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds,
		object("BGPPeer", "tor", nil), object("BGPPeer", "bad", nil), object("BGPPeer", "nowhere", nil),
		object("BGPConfiguration", "default", nil), object("BGPAdvertisement", "lb", nil),
		object("BGPAdvertisement", "missing", nil))
	client.PrependReactor("*", "customresourcedefinitions", func(a k8stesting.Action) (bool, runtime.Object, error) {
		return true, &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{}}}, nil
	})
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if err := store.Write(func(w *model.Writer) {
		w.PutNode(&model.Node{Name: "n1"})
		w.PutNode(&model.Node{Name: "n2"})
		for name, spec := range map[string]api.BGPPeerSpec{"tor": {Address: "192.0.2.1", ASN: 64512},
			"bad": {Address: "192.0.2.1", ASN: 23456},
			"nowhere": {Address: "192.0.2.1", ASN: 64512,
				NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"rack": "9"}}}} {
			p, _ := source.BGPPeer(&api.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec})
			w.PutBGPPeer(p)
		}
		w.PutBGPConfiguration(model.DefaultBGP())
		w.PutAddressPool(&model.AddressPool{Name: "lan", BGP: true})
		w.PutAddressPool(&model.AddressPool{Name: "arp"})
		w.PutBGPAdvertisement(&model.BGPAdvertisement{Name: "lb", Pools: []string{"lan"}, Peers: []string{"tor"}})
		w.PutBGPAdvertisement(&model.BGPAdvertisement{Name: "missing", Pools: []string{"arp", "none"},
			Peers: []string{"none"}})
	}); err != nil {
		t.Fatal(err)
	}
	store.MarkSynced(bgpKinds)
	return client, store
}

func conditionOf(t *testing.T, c *dynamicfake.FakeDynamicClient, kind, name string) (string, int64) {
	t.Helper()
	o, err := c.Resource(bgpResource(kind)).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	nodes, _, _ := unstructured.NestedInt64(o.Object, "status", "nodes")
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	if len(list) != 1 {
		return "", nodes
	}
	cond := list[0].(map[string]any)
	if cond["observedGeneration"] != int64(7) || cond["type"] != "Accepted" {
		t.Errorf("%s %s: %v", kind, name, cond)
	}
	return strings.Join([]string{cond["status"].(string), cond["reason"].(string), cond["message"].(string)}, " "),
		nodes
}

// Each object gets a condition that says whether it is used and why not; what is missing becomes a problem, too. A
// second look writes nothing.
func TestConditionsOfBGP(t *testing.T) {
	client, store := bgpAPI(t)
	var writes atomic.Int32
	client.PrependReactor("update", "*", func(a k8stesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "status" {
			t.Errorf("an update of %q", a.GetSubresource())
		}
		if writes.Add(1) == 2 {
			return true, nil, errors.New("busy") // it is tried again
		}
		return false, nil, nil
	})
	var mu sync.Mutex
	var problems []model.Problem
	b := &BGP{Dynamic: client, Store: store, Log: slog.New(slog.DiscardHandler), SetCondition: func(error) {},
		Health: reconcile.NewHealth(nil, nil),
		Report: func(_ string, list []model.Problem) {
			mu.Lock()
			defer mu.Unlock()
			problems = append(problems, list...)
		}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = b.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	want := map[BGPKey]string{
		{"BGPPeer", "tor"}:              "True Accepted for 2 nodes",
		{"BGPPeer", "bad"}:              "False Invalid spec.asn: 23456 is reserved",
		{"BGPPeer", "nowhere"}:          "False NoNodes spec.nodeSelector: selects no node",
		{"BGPConfiguration", "default"}: "True Accepted ASN 64512",
		{"BGPAdvertisement", "lb"}:      "True Accepted announced",
		{"BGPAdvertisement", "missing"}: "False Missing spec.pools[0]: AddressPool arp is not announced by BGP",
	}
	testnet.Eventually(t, 20*time.Second, func() error {
		var errs []error
		for k, text := range want {
			if got, nodes := conditionOf(t, client, k.Kind, k.Name); !strings.HasPrefix(got, text) ||
				k.Name == "tor" && nodes != 2 {
				errs = append(errs, errors.New(k.String()+": "+got))
			}
		}
		return errors.Join(errs...)
	})
	mu.Lock()
	defer mu.Unlock()
	for _, field := range []string{"spec.pools[0]", "spec.pools[1]", "spec.peers[0]", "spec.nodeSelector"} {
		if !slices.ContainsFunc(problems, func(p model.Problem) bool { return p.Field == field }) {
			t.Errorf("no problem names %s: %v", field, problems)
		}
	}
	if slices.ContainsFunc(problems, func(p model.Problem) bool { return p.Event == "UnprotectedLabel" }) {
		t.Errorf("a mesh without route reflectors: %v", problems)
	}
	before := writes.Load()
	if err := b.Sync(t.Context(), map[BGPKey]BGPState{{"BGPPeer", "tor"}: {Reason: ReasonAccepted,
		Message: "for 2 nodes", Nodes: 2}, {"BGPPeer", "gone"}: {}}); err != nil || writes.Load() != before {
		t.Errorf("%v; %d writes more", err, writes.Load()-before)
	}
}

// A captured node must not make itself a route reflector by a label that its kubelet sets: that is named.
func TestLabelsOfRouteReflectors(t *testing.T) {
	for key, want := range map[string]int{"reflector": 1, "node-restriction.kubernetes.io/reflector": 0} {
		c := &model.BGPConfiguration{Name: model.BGPDefault, ASN: 64512}
		c.Mesh.Enabled, c.Mesh.HasReflectors = true, true
		c.Mesh.Reflectors.Requirements = []model.Requirement{{Key: key, Operator: model.Exists}}
		if got := unprotected(c); len(got) != want {
			t.Errorf("%s: %v", key, got)
		}
		if c.Mesh.HasReflectors = false; len(unprotected(c)) > 0 {
			t.Errorf("%s, without route reflectors: %v", key, unprotected(c))
		}
	}
}
