package writeback

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"wayleave.dev/api"
)

func labelled(namespace, name string, hostNetwork bool, phase corev1.PodPhase, labels ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{}},
		Spec: corev1.PodSpec{HostNetwork: hostNetwork}, Status: corev1.PodStatus{Phase: phase}}
	for _, l := range labels {
		key, value, _ := strings.Cut(l, "=")
		p.Labels[key] = value
	}
	return p
}

func withPools(pools ...runtime.Object) *dynamicfake.FakeDynamicClient {
	return dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{poolResource(): "AddressPoolList"}, pools...)
}

func aPool() runtime.Object {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": api.GroupVersion,
		"kind": "AddressPool", "metadata": map[string]any{"name": "p"}}}
}

func TestAnotherLoadBalancerKeepsItsServices(t *testing.T) {
	speaker := labelled("metallb-system", "speaker-1", true, corev1.PodRunning, "app.kubernetes.io/name=metallb")
	for _, tc := range []struct {
		name     string
		pod      *corev1.Pod
		existing bool
		takeOver bool
		own      bool
	}{
		{"nothing else", nil, false, false, true},
		{"MetalLB by Helm", speaker, false, false, false},
		{"MetalLB by its manifest", labelled("metallb-system", "speaker-2", true, corev1.PodPending, "app=metallb"),
			false, false, false},
		{"ServiceLB", labelled("kube-system", "svclb-traefik-1", false, corev1.PodRunning,
			"svccontroller.k3s.cattle.io/svcname=traefik"), false, false, false},
		{"the setting", speaker, false, true, true},
		{"an installation of an earlier version", speaker, true, false, true},
		{"a tenant's label", labelled("tenant", "x", false, corev1.PodRunning, "app=metallb",
			"svccontroller.k3s.cattle.io/svcname=x"), false, false, true},
		{"a speaker that has ended", labelled("metallb-system", "speaker-3", true, corev1.PodFailed, "app=metallb"),
			false, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, d := fake.NewClientset(), withPools()
			if tc.pod != nil {
				c = fake.NewClientset(tc.pod)
			}
			if tc.existing {
				d = withPools(aPool())
			}
			b := BalancerChoice{Client: c, Dynamic: d, TakeOver: tc.takeOver}
			for i := range 3 { // a new leader decides again
				own, rival, err := b.Decide(t.Context())
				if err != nil || own != tc.own || own != (rival.Name == "") {
					t.Fatalf("round %d: %v, %v, %v", i, own, rival, err)
				}
			}
		})
	}
}

// A choice for Wayleave is final; one for another load balancer ends with that.
func TestAChoiceForWayleaveIsFinal(t *testing.T) {
	c, d := fake.NewClientset(), withPools()
	b := BalancerChoice{Client: c, Dynamic: d}
	decide := func(want bool) {
		t.Helper()
		if own, rival, err := b.Decide(t.Context()); err != nil || own != want {
			t.Fatalf("%v, %v, %v", own, rival, err)
		}
	}
	speaker := labelled("metallb-system", "speaker-1", true, corev1.PodRunning, "app=metallb")
	put := func() {
		t.Helper()
		_, err := c.CoreV1().Pods("metallb-system").Create(t.Context(), speaker, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	put()
	decide(false)
	if err := c.CoreV1().Pods("metallb-system").Delete(t.Context(), "speaker-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	decide(true)
	put()
	decide(true)
}

// What cannot be decided is not served: addresses would be given by two.
func TestAnUnknownLoadBalancerIsNoNone(t *testing.T) {
	for verb, resource := range map[string]string{"list": "pods", "get": "leases", "create": "leases"} {
		c := fake.NewClientset()
		c.PrependReactor(verb, resource, func(k8stesting.Action) (bool, runtime.Object, error) {
			return true, nil, errors.New("away")
		})
		b := BalancerChoice{Client: c, Dynamic: withPools()}
		if own, _, err := b.Decide(t.Context()); own || err == nil {
			t.Errorf("%s of %s fails: %v, %v", verb, resource, own, err)
		}
	}
}

// Agents follow the recorded choice. Without one they answer, as earlier versions do, and a Lease that goes changes
// nothing.
func TestAgentsFollowTheChoice(t *testing.T) {
	for _, tc := range []struct {
		name, at string
		lease    bool
		want     bool
	}{{"no Lease", "", false, true}, {"no choice", "", true, true}, {"Wayleave", chosenOwn, true, true},
		{"another", chosenOther, true, false}} {
		t.Run(tc.name, func(t *testing.T) {
			lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: PeersNamespace, Name: askLease,
				Annotations: map[string]string{defaultBalancer: tc.at}}}
			c := fake.NewClientset()
			if tc.lease {
				c = fake.NewClientset(lease.DeepCopy())
			}
			leases := c.CoordinationV1().Leases(PeersNamespace)
			got := make(chan bool, 8)
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- FollowBalancerChoice(ctx, c, func(own bool) { got <- own }) }()
			next := func(want bool) {
				t.Helper()
				select {
				case own := <-got:
					if own != want {
						t.Errorf("own is %t", own)
					}
				case <-time.After(20 * time.Second):
					t.Fatalf("not told that own is %t", want)
				}
			}
			next(tc.want)
			write := func(value string) {
				t.Helper()
				l := lease.DeepCopy()
				l.Annotations[defaultBalancer] = value
				if _, err := leases.Update(ctx, l, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if !tc.lease {
				if _, err := leases.Create(ctx, lease.DeepCopy(), metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if !tc.want {
				write(chosenOwn)
				next(true)
			}
			write(chosenOther)
			next(false)
			if err := leases.Delete(ctx, askLease, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			select {
			case own := <-got:
				t.Errorf("without the Lease: own is %t", own)
			case <-time.After(300 * time.Millisecond):
			}
			stop()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}
