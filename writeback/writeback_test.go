package writeback

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"wayleave.dev/model"
)

func want() DNSService {
	return DNSService{Selector: map[string]string{"app.kubernetes.io/name": "wayleave"}, TargetPort: 10053}
}

func get(t *testing.T, c *fake.Clientset) *corev1.Service {
	t.Helper()
	svc, err := c.CoreV1().Services(DNSNamespace).Get(t.Context(), DNSName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

func kubernetesService() *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}}
}

func TestKubeDNSIsMadeAtTheTenthAddress(t *testing.T) {
	c := fake.NewClientset(kubernetesService())
	if err := want().Ensure(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if svc := get(t, c); svc.Spec.ClusterIP != "10.96.0.10" || len(svc.Spec.Ports) != 2 {
		t.Errorf("made %+v", svc.Spec)
	}
	before := len(c.Actions())
	if err := want().Ensure(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := c.Actions()[before:]; len(got) != 1 || got[0].GetVerb() != "get" {
		t.Errorf("a second time it did %v", got)
	}
}

func TestKubeDNSIsTakenOverWithTheWayBack(t *testing.T) {
	c := fake.NewClientset(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: DNSNamespace, Name: DNSName},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.10", Selector: map[string]string{"k8s-app": "kube-dns"},
			Ports: []corev1.ServicePort{{Name: "dns", Protocol: "UDP", Port: 53, TargetPort: intstr.FromInt32(53)}}},
	})
	if err := want().Ensure(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	svc := get(t, c)
	if len(svc.Spec.Selector) != 1 || svc.Spec.Selector["app.kubernetes.io/name"] != "wayleave" {
		t.Errorf("selector is %v", svc.Spec.Selector)
	}
	if old := svc.Annotations[previousSpec]; !strings.Contains(old, `"k8s-app":"kube-dns"`) {
		t.Errorf("the way back is %q", old)
	}
}

func TestKubeDNSAtAnotherAddressIsRefusedByName(t *testing.T) {
	c := fake.NewClientset(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: DNSNamespace, Name: DNSName},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.99"}})
	d := want()
	d.VIPs = []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	err := d.Ensure(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "spec.clusterIP: it is 10.96.0.99") {
		t.Errorf("error is %v", err)
	}
}

func TestAProblemBecomesOneEventOfTheElected(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u1"}}
	c := fake.NewClientset(svc)
	p := NewProblems(slog.New(slog.DiscardHandler))
	p.grace = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx, c, "node1", func() bool { return true }) }()
	q := model.Problem{Kind: "Service", Object: model.Name{Namespace: "default", Name: "web"},
		Field: "spec.ports[0].port", Reason: "0 is not a port"}
	for range 3 {
		p.Set("source", "default/web", []model.Problem{q})
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		l, err := c.CoreV1().Events("default").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(l.Items) == 1 {
			if e := l.Items[0]; e.InvolvedObject.UID != "u1" || !strings.Contains(e.Message,
				"spec.ports[0].port: 0 is not") {
				t.Errorf("event is %+v", e)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d events", len(l.Items))
		}
		time.Sleep(5 * time.Millisecond)
	}
	if got := len(p.List()); got != 1 {
		t.Errorf("%d problems listed", got)
	}
	p.Set("source", "default/web", nil)
	if got := p.List(); len(got) != 0 {
		t.Errorf("still listed: %v", got)
	}
	cancel()
	<-done
}

// An agent that ends at once for what is wrong with its node still says so: in its Lease,
// and in the writer's Event.
func TestAnAgentThatEndsAtOnceStillReports(t *testing.T) {
	c := peerNodes()
	l := NodeLease{Client: c, Namespace: PeersNamespace, Node: "node1"}
	p := NewProblems(slog.New(slog.DiscardHandler))
	p.Set("service", "mode", []model.Problem{{Kind: "Node", Object: model.Name{Name: "node1"}, Field: "mode",
		Reason: "no IPVS"}})
	p.Set("service", "other", []model.Problem{{Kind: "Node", Object: model.Name{Name: "node2"}, Field: "mode",
		Reason: "no IPVS"}})
	if err := l.Report(t.Context(), p.List()); err != nil {
		t.Fatal(err)
	}
	have, err := l.Set(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, problems, _ := ReadReport(have)
	if len(problems) != 1 {
		t.Fatalf("reported are %v", problems)
	}
	if err := p.write(t.Context(), c, "writer-1", problems[0]); err != nil {
		t.Fatal(err)
	}
	events, err := c.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(events.Items) != 1 || events.Items[0].InvolvedObject.Name != "node1" ||
		events.Items[0].Message != "mode: no IPVS" || events.Items[0].Source.Host != "node1" {
		t.Errorf("events are %+v", events.Items)
	}
}

// The leadership is not released while the leader still writes.
func TestLeadershipIsReleasedOnlyAfterTheLeaderStopped(t *testing.T) {
	c := fake.NewClientset()
	ctx, cancel := context.WithCancel(t.Context())
	started, release, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_ = Elect(ctx, c, DNSNamespace, "me", slog.New(slog.DiscardHandler), func(ctx context.Context) {
			close(started)
			<-ctx.Done()
			<-release
		})
	}()
	holder := func() string {
		l, err := c.CoordinationV1().Leases(DNSNamespace).Get(t.Context(), LeaseName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if l.Spec.HolderIdentity == nil {
			return ""
		}
		return *l.Spec.HolderIdentity
	}
	<-started
	cancel()
	select {
	case <-ended:
		t.Error("Elect returned while the writer was at work")
	case <-time.After(100 * time.Millisecond): // longer than a release takes
	}
	if holder() != "me" {
		t.Errorf("the Lease is held by %q while the writer is at work", holder())
	}
	close(release)
	<-ended
	if holder() != "" {
		t.Errorf("the Lease is held by %q after the writer has ended", holder())
	}
}

func TestTheDefinitionIsAppliedOnlyWhenItDiffers(t *testing.T) {
	c := dynamicfake.NewSimpleDynamicClient(runtime.NewScheme())
	var have *unstructured.Unstructured
	applied := 0
	c.PrependReactor("*", "customresourcedefinitions", func(a k8stesting.Action) (bool, runtime.Object, error) {
		switch a := a.(type) {
		case k8stesting.PatchAction:
			applied++
			have = &unstructured.Unstructured{}
			if a.GetPatchType() != types.ApplyPatchType {
				t.Errorf("patched by %s", a.GetPatchType())
			}
			return true, have, have.UnmarshalJSON(a.GetPatch())
		case k8stesting.GetAction:
			if have == nil {
				return true, nil, apierrors.NewNotFound(schema.GroupResource{}, a.GetName())
			}
			return true, have.DeepCopy(), nil
		}
		return false, nil, nil
	})
	for range 2 {
		if err := EnsureAddressPoolCRD(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if applied != 1 || have.GetName() != "addresspools.wayleave.dev" {
		t.Errorf("applied %d times: %v", applied, have)
	}
	have.SetAnnotations(map[string]string{digestAnnotation: "of an older version"})
	if err := EnsureAddressPoolCRD(t.Context(), c); err != nil || applied != 2 {
		t.Errorf("%v, applied %d times", err, applied)
	}
}
