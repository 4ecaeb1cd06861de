package writeback

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
)

// TestTunnelKeys: nodes read each other's keys, a Lease that others changed is written again, damaged annotations harm
// nothing, and keys are withdrawn.
func TestTunnelKeys(t *testing.T) {
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node2"}},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "other", Namespace: PeersNamespace,
			Annotations: map[string]string{tunnelAnnotation: `[{"key":"x","port":1}]`}}},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: leaseOf("bad"), Namespace: PeersNamespace,
			Annotations: map[string]string{tunnelAnnotation: `[{"key":`}}},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: leaseOf("long"), Namespace: PeersNamespace,
			Annotations: map[string]string{tunnelAnnotation: `[{"key":"` + strings.Repeat("x", 1<<16) + `"}]`}}},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: leaseOf("many"), Namespace: PeersNamespace,
			Annotations: map[string]string{tunnelAnnotation: "[" + strings.Repeat("{},", 9) + "{}]"}}})
	start := func(node string) (k *TunnelKeys, stop func()) {
		k = &TunnelKeys{Client: client, Namespace: PeersNamespace, Node: node, Log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		return k, func() { cancel(); <-done }
	}
	one, stop := start("node1")
	two, stop2 := start("node2")
	defer stop2()
	one.Publish([]TunnelKey{{"a", 1}, {"b", 2}})
	two.Publish([]TunnelKey{{"c", 3}})
	expect := func(k *TunnelKeys, want string) {
		t.Helper()
		var got string
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			keys, ok, err := k.Nodes()
			if got = fmt.Sprint(keys, ok, err); got == want {
				return
			}
		}
		t.Fatalf("keys are %s, want %s", got, want)
	}
	both := "map[node1:[{a 1} {b 2}] node2:[{c 3}]] true <nil>"
	expect(one, both)
	expect(two, both)
	leases := client.CoordinationV1().Leases(PeersNamespace)
	l, err := leases.Get(t.Context(), leaseOf("node2"), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l.Annotations[tunnelAnnotation] = `[{"key":"stolen","port":9}]`
	if _, err := leases.Update(t.Context(), l, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(one, both)
	stop()
	// With encryption off, the next agent withdraws the keys.
	next := &TunnelKeys{Client: client, Namespace: PeersNamespace, Node: "node1", Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- next.Withdraw(ctx) }()
	expect(two, "map[node2:[{c 3}]] true <nil>")
	cancel()
	if err := <-done; err != context.Canceled {
		t.Error(err)
	}
}

// requests counts the requests of a client by verb, without watches.
func requests(client *fake.Clientset, verb string, since int) (n int) {
	for _, a := range client.Actions()[since:] {
		if a.GetVerb() == verb {
			n++
		}
	}
	return n
}

// TestANodeThatWritesItsLeaseMakesOthersAskNothing: a captured node may write its own Lease as often as it likes. Each
// write is an event for every agent and for the writer, and must not become a request of each.
func TestANodeThatWritesItsLeaseMakesOthersAskNothing(t *testing.T) {
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: leaseOf("evil"), Namespace: PeersNamespace,
			Labels: map[string]string{peerLabel: "true"}}})
	k := &TunnelKeys{Client: client, Namespace: PeersNamespace, Node: "node1", Log: slog.New(slog.DiscardHandler)}
	sealer := &KeySealer{Client: client, Namespace: PeersNamespace, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = k.Run(ctx) })
	running.Go(func() { _ = sealer.Run(ctx) })
	k.Publish([]TunnelKey{{"a", 1}})
	until := func(what string, ok func(keys map[string][]TunnelKey) bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if keys, _, _ := k.Nodes(); ok(keys) {
				return
			}
			if time.Now().After(end) {
				t.Fatal("no " + what)
			}
		}
	}
	until("own key", func(keys map[string][]TunnelKey) bool { return len(keys["node1"]) == 1 })
	before, began := len(client.Actions()), time.Now()
	evil := kubernetes.Interface(client).CoordinationV1().Leases(PeersNamespace)
	for i := 1; i <= 400; i++ {
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: leaseOf("evil"), Namespace: PeersNamespace,
			Labels:      map[string]string{peerLabel: "true"},
			Annotations: map[string]string{tunnelAnnotation: fmt.Sprintf(`[{"key":"k","port":%d}]`, i)}}}
		if _, err := evil.Update(ctx, l, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		k.Publish([]TunnelKey{{"a", 1}}) // as the agent does each second
		time.Sleep(5 * time.Millisecond)
	}
	until("last key", func(keys map[string][]TunnelKey) bool {
		return len(keys["evil"]) == 1 && keys["evil"][0].Port == 400
	})
	if n := requests(client, "get", before); n > 4 {
		t.Errorf("400 writes of another node made this one read its Lease %d times", n)
	}
	// The elected writer lists the Leases at most twice a second.
	if n, most := requests(client, "list", before), int(time.Since(began)/roundsEvery)+3; n > most {
		t.Errorf("400 writes of a node made the writer list all Leases %d times, more than %d", n, most)
	}
}
