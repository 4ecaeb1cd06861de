package writeback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
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
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"wayleave.dev/api"
	"wayleave.dev/loadbalancer"
	"wayleave.dev/model"
	"wayleave.dev/source"
)

// fakeAPI is what the API holds, behind client-go's fakes: with resource versions that
// are checked, faults before and after a write, and a watch that lags behind.
type fakeAPI struct {
	t        *testing.T
	services map[string]*corev1.Service
	pools    map[string]*api.AddressPool
	version  int
	// serviceEvents and poolEvents are what the watch has not shown yet, in order.
	serviceEvents, poolEvents []func(*model.Writer)
	// fault is asked for each request: the error to give, and whether it comes after the
	// write was taken.
	fault func() (err error, after bool)
	// granted is called for each write of a status, with the Service before and after.
	granted func(before, after *corev1.Service)
	writes  int
	store   *model.Store
	client  *fake.Clientset
	dynamic *dynamicfake.FakeDynamicClient
}

func newFakeAPI(t *testing.T) *fakeAPI {
	w := &fakeAPI{t: t, services: map[string]*corev1.Service{}, pools: map[string]*api.AddressPool{},
		client: &fake.Clientset{},
		fault:  func() (error, bool) { return nil, false }, granted: func(_, _ *corev1.Service) {}}
	var err error
	if w.store, err = model.NewStore(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.store.Close() })
	w.store.MarkSynced(balancerKinds)
	w.client.AddReactor("*", "services", w.onService)
	w.dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{poolResource(): "AddressPoolList"})
	w.dynamic.PrependReactor("*", "addresspools", w.onPool)
	return w
}

func (w *fakeAPI) onService(a k8stesting.Action) (bool, runtime.Object, error) {
	err, after := w.fault()
	if err != nil && !after {
		return true, nil, err
	}
	switch a := a.(type) {
	case k8stesting.ListAction:
		out := &corev1.ServiceList{}
		for _, n := range slices.Sorted(maps.Keys(w.services)) {
			out.Items = append(out.Items, *w.services[n].DeepCopy())
		}
		return true, out, err
	case k8stesting.PatchAction:
		out, bad := w.patch(a)
		if bad != nil || err != nil {
			return true, nil, errors.Join(bad, err)
		}
		return true, out, nil
	case k8stesting.GetAction:
		s, ok := w.services[a.GetName()]
		if !ok {
			return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "services"}, a.GetName())
		}
		return true, s.DeepCopy(), err
	}
	return true, nil, fmt.Errorf("unexpected %s", a.GetVerb())
}

func (w *fakeAPI) patch(a k8stesting.PatchAction) (*corev1.Service, error) {
	old, ok := w.services[a.GetName()]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "services"}, a.GetName())
	}
	if a.GetSubresource() != "status" || a.GetPatchType() != types.StrategicMergePatchType {
		w.t.Errorf("a patch of %q by %s", a.GetSubresource(), a.GetPatchType())
	}
	var patch struct{ Metadata metav1.ObjectMeta }
	if err := json.Unmarshal(a.GetPatch(), &patch); err != nil {
		return nil, err
	}
	if patch.Metadata.ResourceVersion != old.ResourceVersion {
		return nil, apierrors.NewConflict(schema.GroupResource{Resource: "services"}, a.GetName(),
			errors.New("another version"))
	}
	raw, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	if raw, err = strategicpatch.StrategicMergePatch(raw, a.GetPatch(), &corev1.Service{}); err != nil {
		return nil, err
	}
	now := &corev1.Service{}
	if err := json.Unmarshal(raw, now); err != nil {
		return nil, err
	}
	w.writes++
	w.granted(old, now)
	w.put(now)
	return now.DeepCopy(), nil
}

// put stores a Service as a new version, and has the watch show it some time.
func (w *fakeAPI) put(s *corev1.Service) {
	w.version++
	s.ResourceVersion = strconv.Itoa(w.version)
	w.services[s.Name] = s
	out, _ := source.Service(s)
	w.serviceEvents = append(w.serviceEvents, func(m *model.Writer) { m.PutService(out) })
}

func (w *fakeAPI) remove(name string) {
	s := w.services[name]
	delete(w.services, name)
	w.serviceEvents = append(w.serviceEvents, func(m *model.Writer) {
		m.Delete(model.ServiceKind, model.Name{Namespace: s.Namespace, Name: name})
	})
}

func (w *fakeAPI) putPool(p *api.AddressPool) {
	w.version++
	p.ResourceVersion = strconv.Itoa(w.version)
	w.pools[p.Name] = p
	out, _ := source.AddressPool(p)
	w.poolEvents = append(w.poolEvents, func(m *model.Writer) { m.PutAddressPool(out) })
}

func (w *fakeAPI) removePool(name string) {
	delete(w.pools, name)
	w.poolEvents = append(w.poolEvents,
		func(m *model.Writer) { m.Delete(model.AddressPoolKind, model.Name{Name: name}) })
}

func (w *fakeAPI) onPool(a k8stesting.Action) (bool, runtime.Object, error) {
	if err, _ := w.fault(); err != nil {
		return true, nil, err
	}
	switch a := a.(type) {
	case k8stesting.UpdateAction:
		u := a.GetObject().(*unstructured.Unstructured)
		p, ok := w.pools[u.GetName()]
		if !ok || p.ResourceVersion != u.GetResourceVersion() {
			return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "addresspools"}, u.GetName(),
				errors.New("another version"))
		}
		var now api.AddressPool
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &now); err != nil {
			return true, nil, err
		}
		changed := *p
		changed.Status = now.Status
		w.putPool(&changed)
		return true, u, nil
	case k8stesting.GetAction:
		p, ok := w.pools[a.GetName()]
		if !ok {
			return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "addresspools"}, a.GetName())
		}
		raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(p)
		return true, &unstructured.Unstructured{Object: raw}, err
	}
	return true, nil, fmt.Errorf("unexpected %s", a.GetVerb())
}

// show has the watch show that many events of each kind; negative is all.
func (w *fakeAPI) show(services, pools int) {
	w.t.Helper()
	take := func(queue *[]func(*model.Writer), n int) (now []func(*model.Writer)) {
		if n < 0 || n > len(*queue) {
			n = len(*queue)
		}
		now, *queue = (*queue)[:n], (*queue)[n:]
		return now
	}
	events := slices.Concat(take(&w.serviceEvents, services), take(&w.poolEvents, pools))
	if err := w.store.Write(func(m *model.Writer) {
		for _, e := range events {
			e(m)
		}
	}); err != nil {
		w.t.Fatal(err)
	}
}

// leader is a Balancer that leads.
type leader struct {
	*Balancer
	watch    *model.Watcher
	problems map[string][]model.Problem
}

// elect starts a leader; the one before has ended.
func (w *fakeAPI) elect(before *leader) *leader {
	w.t.Helper()
	if before != nil {
		before.watch.Close()
	}
	e := &leader{problems: map[string][]model.Problem{}}
	e.Balancer = &Balancer{Client: w.client, Dynamic: w.dynamic, Store: w.store, Default: true,
		Log: slog.New(slog.DiscardHandler),
		Report: func(key string, p []model.Problem) {
			if e.problems[key] = p; len(p) == 0 {
				delete(e.problems, key)
			}
		}, SetCondition: func(error) {}}
	for e.start(w.t.Context()) != nil { // until the faults let it
	}
	var err error
	if e.watch, err = w.store.Watch(balancerKinds); err != nil {
		w.t.Fatal(err)
	}
	return e
}

func (e *leader) round(ctx context.Context) error {
	snap, changes, _ := e.watch.Poll()
	return e.step(ctx, snap, changes)
}

// rest runs rounds until there is nothing left to do.
func (w *fakeAPI) rest(e *leader) {
	w.t.Helper()
	for range 100 {
		w.show(-1, -1)
		err := e.round(w.t.Context())
		if err == nil && len(w.serviceEvents)+len(w.poolEvents) == 0 {
			return
		}
	}
	w.t.Fatal("it does not come to rest")
}

func lbService(name string, change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name),
		CreationTimestamp: metav1.Unix(1_700_000_000, 0), Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{"IPv4"},
			Ports: []corev1.ServicePort{{Port: 80}}}}
	for _, c := range change {
		c(s)
	}
	return s
}

func lbPool(name string, addresses ...string) *api.AddressPool {
	return &api.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(1_700_000_000, 0)},
		Spec: api.AddressPoolSpec{Addresses: addresses}}
}

func ips(s *corev1.Service) string {
	var out []string
	for _, g := range s.Status.LoadBalancer.Ingress {
		out = append(out, g.IP)
	}
	return strings.Join(out, " ")
}

func TestAServiceGetsItsAddressInTheAPI(t *testing.T) {
	w := newFakeAPI(t)
	w.putPool(lbPool("lan", "192.0.2.1-192.0.2.2"))
	w.put(lbService("a"))
	w.put(lbService("b"))
	w.put(lbService("c"))
	e := w.elect(nil)
	w.rest(e)
	a, c := w.services["a"], w.services["c"]
	if got := a.Status.LoadBalancer.Ingress; len(got) != 1 || got[0].IP != "192.0.2.1" ||
		*got[0].IPMode != corev1.LoadBalancerIPModeVIP {
		t.Errorf("a has %+v", got)
	}
	if cond := c.Status.Conditions; ips(c) != "" || len(cond) != 1 || cond[0].Type != source.AddressCondition ||
		cond[0].Reason != loadbalancer.ReasonPoolFull ||
		!strings.Contains(cond[0].Message, "AddressPool lan is full (IPv4)") ||
		len(e.problems["Service default/c"]) != 1 {
		t.Errorf("c: %q %+v %v", ips(c), cond, e.problems)
	}
	if p := w.pools["lan"].Status; p.Used != 2 || p.Free != 0 || len(p.Conditions) != 1 ||
		p.Conditions[0].Reason != "Full" || p.Conditions[0].Status != metav1.ConditionFalse {
		t.Errorf("the pool says %+v", p)
	}
	// At rest nothing is written.
	before := w.version
	w.rest(w.elect(e))
	if w.version != before {
		t.Errorf("%d writes without a cause", w.version-before)
	}
	// A released address goes to a waiting Service.
	e = w.elect(nil)
	w.rest(e)
	w.remove("a")
	w.rest(e)
	if ips(c) != "" || ips(w.services["c"]) != "192.0.2.1" || len(w.services["c"].Status.Conditions) != 0 ||
		len(e.problems) != 0 {
		t.Errorf("c has %q, %+v, %v", ips(w.services["c"]), w.services["c"].Status.Conditions, e.problems)
	}
	// The pool goes: Event and condition say so, and nothing moves.
	w.removePool("lan")
	w.rest(e)
	if b := w.services["b"]; ips(b) != "192.0.2.2" || len(b.Status.Conditions) != 1 ||
		b.Status.Conditions[0].Reason != loadbalancer.ReasonOutside || len(e.problems["Service default/b"]) != 1 {
		t.Errorf("b has %q, %+v", ips(b), b.Status.Conditions)
	}
	// A type that needs no address (the API server clears the status) gives it back.
	changed := w.services["b"].DeepCopy()
	changed.Spec.Type, changed.Status.LoadBalancer = corev1.ServiceTypeClusterIP, corev1.LoadBalancerStatus{}
	w.put(changed)
	w.putPool(lbPool("lan", "192.0.2.2"))
	w.put(lbService("d"))
	w.rest(e)
	if ips(w.services["d"]) != "192.0.2.2" {
		t.Errorf("d has %q", ips(w.services["d"]))
	}
}

// A Service that prefers both families and has one gets the other once it is free.
func TestAFreedAddressCompletesAService(t *testing.T) {
	w := newFakeAPI(t)
	w.putPool(lbPool("lan", "192.0.2.1-192.0.2.2", "2001:db8::1/128"))
	six, dual := lbService("a"), lbService("b")
	six.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
	dual.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	dual.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyPreferDualStack)
	w.put(six)
	w.put(dual)
	e := w.elect(nil)
	w.rest(e)
	if a, b := ips(w.services["a"]), ips(w.services["b"]); a != "2001:db8::1" || b != "192.0.2.1" ||
		len(e.problems) != 0 {
		t.Fatalf("a has %q, b has %q, %v", a, b, e.problems)
	}
	w.remove("a")
	w.rest(e)
	if got := ips(w.services["b"]); got != "192.0.2.1 2001:db8::1" {
		t.Errorf("b has %q", got)
	}
}

// A status of others and conditions of others are left alone.
func TestWhatIsNotOursIsNotTouched(t *testing.T) {
	w := newFakeAPI(t)
	w.putPool(lbPool("lan", "192.0.2.1"))
	other := "example.com/lb"
	w.put(lbService("a", func(s *corev1.Service) { s.Spec.LoadBalancerClass = &other }))
	w.put(lbService("b", func(s *corev1.Service) {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
		s.Status.Conditions = []metav1.Condition{{Type: "Other", Status: "True"}}
	}))
	w.rest(w.elect(nil))
	if ips(w.services["a"]) != "" || ips(w.services["b"]) != "203.0.113.1" {
		t.Errorf("a has %q, b %q", ips(w.services["a"]), ips(w.services["b"]))
	}
	if c := w.services["b"].Status.Conditions; len(c) != 2 {
		t.Errorf("conditions are %+v", c)
	}
}

// Addresses that another load balancer left give way to one asked for by name. If that load
// balancer still runs and writes its own back, the Service is left to it, and that is told.
func TestAddressesOfAnotherBalancerGiveWay(t *testing.T) {
	w := newFakeAPI(t)
	w.putPool(lbPool("lan", "192.0.2.240-192.0.2.250"))
	left := []corev1.LoadBalancerIngress{{IP: "192.0.2.11"}, {IP: "192.000.002.012"}, {IP: "192.0.2.13"}}
	w.put(lbService("moved", func(s *corev1.Service) {
		s.Annotations = map[string]string{"metallb.io/loadBalancerIPs": "192.0.2.245"}
		s.Status.LoadBalancer.Ingress = left
	}))
	e := w.elect(nil)
	for range maxEvictions {
		w.rest(e)
		if s := w.services["moved"]; ips(s) != "192.0.2.245" || len(s.Status.Conditions) != 0 {
			t.Fatalf("it has %q, %+v", ips(s), s.Status.Conditions)
		}
		again := w.services["moved"].DeepCopy()
		again.Status.LoadBalancer.Ingress = left
		w.put(again)
	}
	w.rest(e)
	s := w.services["moved"]
	if len(s.Status.LoadBalancer.Ingress) != 3 || len(s.Status.Conditions) != 1 ||
		s.Status.Conditions[0].Reason != ReasonContested || len(e.problems["Service default/moved"]) != 1 {
		t.Errorf("it has %q, %+v, %v", ips(s), s.Status.Conditions, e.problems)
	}
	writes := w.writes
	again := s.DeepCopy()
	again.Labels = map[string]string{"a": "b"}
	w.put(again)
	w.rest(e)
	if w.writes != writes {
		t.Errorf("%d more writes", w.writes-writes)
	}
	// The other one is stopped: the Service asks for another address.
	again = w.services["moved"].DeepCopy()
	again.Status.LoadBalancer.Ingress = nil
	w.put(again)
	w.rest(e)
	if s := w.services["moved"]; ips(s) != "192.0.2.245" || len(s.Status.Conditions) != 0 || len(e.problems) != 0 {
		t.Errorf("at the end it has %q, %+v, %v", ips(s), s.Status.Conditions, e.problems)
	}
}

// A finalizer of another load balancer keeps a Service that is being deleted: it is named, and
// neither it nor the address is touched.
func TestAFinalizerOfAnotherBalancerIsNamed(t *testing.T) {
	w := newFakeAPI(t)
	w.putPool(lbPool("lan", "192.0.2.1-192.0.2.9"))
	now := metav1.Now()
	for i, f := range []string{"service.kubernetes.io/load-balancer-cleanup", "svccontroller.k3s.cattle.io/daemonset",
		"example.com/mine"} {
		w.put(lbService(fmt.Sprint("s", i), func(s *corev1.Service) {
			s.Finalizers, s.DeletionTimestamp = []string{f}, &now
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: fmt.Sprint("192.0.2.", i+1)}}
		}))
	}
	w.put(lbService("live", func(s *corev1.Service) {
		s.Finalizers = []string{"service.kubernetes.io/load-balancer-cleanup"}
	}))
	e := w.elect(nil)
	w.rest(e)
	for i, want := range []int{1, 1, 0} {
		name := fmt.Sprint("s", i)
		if p := e.problems["Service default/"+name]; len(p) != want || want == 1 &&
			(p[0].Field != "metadata.finalizers" || !strings.Contains(p[0].Reason, "neither sets nor removes")) {
			t.Errorf("%s: %v", name, p)
		}
		if s := w.services[name]; ips(s) != fmt.Sprint("192.0.2.", i+1) || len(s.Finalizers) != 1 {
			t.Errorf("%s has %q, %v", name, ips(s), s.Finalizers)
		}
	}
	if ips(w.services["live"]) != "192.0.2.4" || len(e.problems["Service default/live"]) != 0 {
		t.Errorf("live has %q, %v", ips(w.services["live"]), e.problems)
	}
}

// randomTest is a fake API under random steps.
type randomTest struct {
	*fakeAPI
	r     *rand.Rand
	uid   int
	names []string
}

func (r *randomTest) pick(list ...string) string { return list[r.r.IntN(len(list))] }

func (r *randomTest) randomAddress() string {
	if r.r.IntN(2) == 0 {
		return fmt.Sprintf("192.0.2.%d", r.r.IntN(64))
	}
	return fmt.Sprintf("2001:db8::%x", r.r.IntN(64))
}

// wishes sets what a Service asks for anew.
func (r *randomTest) wishes(s *corev1.Service) {
	s.Annotations = map[string]string{"key": s.Annotations["key"]}
	if k := s.Annotations["key"]; k != "" {
		s.Annotations["wayleave.dev/allow-shared-ip"] = k
	}
	switch r.r.IntN(6) {
	case 0:
		s.Annotations["wayleave.dev/load-balancer-ips"] = r.randomAddress()
	case 1:
		s.Annotations["metallb.io/address-pool"] = r.pick("p0", "p1", "p2", "p3")
	case 2:
		s.Spec.LoadBalancerIP = r.randomAddress()
	case 3:
		s.Spec.LoadBalancerIP = ""
	}
	s.Labels = map[string]string{"app": r.pick("web", "db")}
	policy := []corev1.IPFamilyPolicy{corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack,
		corev1.IPFamilyPolicyRequireDualStack}[r.r.IntN(3)]
	s.Spec.IPFamilyPolicy = &policy
	s.Spec.IPFamilies = []corev1.IPFamily{"IPv4", "IPv6"}
	if policy == corev1.IPFamilyPolicySingleStack {
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPFamily(r.pick("IPv4", "IPv6"))}
	}
}

func (r *randomTest) create(name string) {
	r.uid++
	s := lbService(name)
	s.UID, s.CreationTimestamp = types.UID(strconv.Itoa(r.uid)), metav1.Unix(1_700_000_000+int64(r.uid/3), 0)
	s.Annotations["key"] = r.pick("", "", "k1", "k2")
	s.Spec.Ports[0].Port = int32(80 + r.r.IntN(3))
	r.wishes(s)
	r.put(s)
}

func (r *randomTest) randomPool(name string) {
	p := &api.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name),
		CreationTimestamp: metav1.Unix(1_700_000_000, 0)}}
	for range 1 + r.r.IntN(2) {
		from := r.r.IntN(60)
		to := from + r.r.IntN(8)
		if r.r.IntN(2) == 0 {
			p.Spec.Addresses = append(p.Spec.Addresses, fmt.Sprintf("192.0.2.%d-192.0.2.%d", from, to))
		} else {
			p.Spec.Addresses = append(p.Spec.Addresses, fmt.Sprintf("2001:db8::%x-2001:db8::%x", from, to))
		}
	}
	if r.r.IntN(6) == 0 {
		p.Spec.Addresses = append(p.Spec.Addresses, "192.0.2.9-192.0.2.1")
	}
	auto := r.r.IntN(4) > 0
	p.Spec.AutoAssign, p.Spec.AvoidBuggyAddresses = &auto, r.r.IntN(3) == 0
	if r.r.IntN(4) == 0 {
		p.Spec.ServiceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	}
	if old := r.pools[name]; old != nil {
		p.Status = old.Status
	}
	r.putPool(p)
}

// step changes one thing.
func (r *randomTest) step() {
	name := r.names[r.r.IntN(len(r.names))]
	s, there := r.services[name]
	switch n := r.r.IntN(20); {
	case n < 3:
		if pool := r.pick("p0", "p1", "p2", "p3"); n == 0 && r.pools[pool] != nil {
			r.removePool(pool)
		} else {
			r.randomPool(pool)
		}
	case !there:
		r.create(name)
	case n < 8:
		r.remove(name)
	case n < 10: // gone and there again before anybody sees it
		r.remove(name)
		r.create(name)
	case n < 13:
		changed := s.DeepCopy()
		if changed.Spec.Type == corev1.ServiceTypeLoadBalancer {
			changed.Spec.Type, changed.Status = corev1.ServiceTypeClusterIP, corev1.ServiceStatus{}
		} else {
			changed.Spec.Type = corev1.ServiceTypeLoadBalancer
		}
		r.put(changed)
	default:
		changed := s.DeepCopy()
		r.wishes(changed)
		r.put(changed)
	}
}

// check is called for each write of a status, with what the API held then.
func (r *randomTest) check(before, after *corev1.Service) {
	b, _ := source.Service(before)
	a, _ := source.Service(after)
	for _, addr := range b.LoadBalancer.Given {
		wanted := addr.Is4() && b.LoadBalancer.IPv4 || addr.Is6() && b.LoadBalancer.IPv6
		other := slices.ContainsFunc(b.LoadBalancer.Requested,
			func(q netip.Addr) bool { return q.Is4() == addr.Is4() && q != addr })
		if wanted && !other && !slices.Contains(a.LoadBalancer.Given, addr) {
			r.t.Errorf("%s had %s, and got %v", before.Name, addr, a.LoadBalancer.Given)
		}
	}
	families := map[bool]int{}
	for _, addr := range a.LoadBalancer.Given {
		if families[addr.Is4()]++; families[addr.Is4()] > 1 {
			r.t.Errorf("%s has two addresses of a family: %v", after.Name, a.LoadBalancer.Given)
		}
		if slices.Contains(b.LoadBalancer.Given, addr) {
			continue
		}
		if !slices.ContainsFunc(slices.Collect(r.store.Snapshot().AddressPools()),
			func(p *model.AddressPool) bool { return p.Contains(addr) }) {
			r.t.Errorf("%s got %s, which is in no pool", after.Name, addr)
		}
		for _, other := range r.services {
			o, _ := source.Service(other)
			if o.Name == a.Name || o.LoadBalancer == nil || !slices.Contains(o.LoadBalancer.Given, addr) {
				continue
			}
			if k := a.LoadBalancer.SharingKey; k == "" || k != o.LoadBalancer.SharingKey ||
				a.Ports[0].Port == o.Ports[0].Port {
				r.t.Errorf("%s got %s, which %s has", after.Name, addr, other.Name)
			}
		}
	}
}

// checkRest looks at objects for which nothing is left to do.
func (r *randomTest) checkRest(e *leader) {
	fresh := loadbalancer.New(true)
	var pools []*model.AddressPool
	for _, p := range r.pools {
		out, _ := source.AddressPool(p)
		pools = append(pools, out)
	}
	fresh.SetPools(pools)
	recorded := map[model.Name]bool{}
	for _, s := range r.services {
		if m, _ := source.Service(s); m.LoadBalancer != nil {
			fresh.Set(m)
			recorded[m.Name] = true
			if got := e.allocator.Has(m.Name); !slices.Equal(got, m.LoadBalancer.Given) {
				r.t.Errorf("%s has %v, the allocator says %v", s.Name, m.LoadBalancer.Given, got)
			}
		}
	}
	for _, n := range e.allocator.Services() {
		if !recorded[n] {
			r.t.Errorf("%s is recorded and is not there", n)
		}
	}
	for n := range recorded {
		if d := fresh.Decide(n); !slices.Equal(d.Addrs, fresh.Has(n)) ||
			len(d.Problems) != len(e.problems["Service "+n.String()]) {
			r.t.Errorf("at rest %s has %v and should have %v; %v was told, %v is so", n, fresh.Has(n), d.Addrs,
				e.problems["Service "+n.String()], d.Problems)
		}
	}
	for name, p := range r.pools {
		if s, _, _ := fresh.Pool(name); p.Status.Used != s.Used || p.Status.Free != s.Free ||
			p.Status.Conditions[0].Reason != s.Reason {
			r.t.Errorf("pool %s says %+v, and it is %+v", name, p.Status, s)
		}
	}
}

// 10,000 random steps, with requests that fail before and after they were taken, a watch
// that lags, and changes of the leader: no address is given twice, none that was given is
// changed, none leaks.
func TestRandomStepsGiveNothingTwice(t *testing.T) {
	t.Parallel()
	const steps = 10_000
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := &randomTest{fakeAPI: newFakeAPI(t), r: rand.New(rand.NewPCG(seed, 1))}
	for i := range 40 {
		r.names = append(r.names, fmt.Sprintf("s%02d", i))
	}
	r.granted = r.check
	faulty := func() (error, bool) {
		switch n := r.r.IntN(20); n {
		case 0, 1:
			return apierrors.NewServerTimeout(schema.GroupResource{}, "patch", 1), n == 0
		case 2:
			return apierrors.NewConflict(schema.GroupResource{}, "x", errors.New("injected")), false
		}
		return nil, false
	}
	r.fault = faulty
	e := r.elect(nil)
	for i := range steps {
		r.step()
		if r.r.IntN(3) > 0 {
			r.show(r.r.IntN(6), r.r.IntN(3))
			_ = e.round(t.Context()) // it is tried again
		}
		if i%97 == 0 {
			e = r.elect(e)
		}
		if i%211 == 0 {
			r.fault = func() (error, bool) { return nil, false }
			r.rest(e)
			r.checkRest(e)
			r.fault = faulty
			r.client.ClearActions()
			r.dynamic.ClearActions()
		}
		if t.Failed() {
			t.Fatalf("after step %d", i)
		}
	}
	if r.writes < steps/20 {
		t.Errorf("only %d writes: the test tests little", r.writes)
	}
	t.Logf("%d writes of a status", r.writes)
}

// Run itself, with its watch: the kind is made first, and a Service that comes later gets
// its address.
func TestTheBalancerRuns(t *testing.T) {
	w := newFakeAPI(t)
	crds := make(chan string, 4)
	w.dynamic.PrependReactor("*", "customresourcedefinitions", func(a k8stesting.Action) (bool, runtime.Object, error) {
		if p, ok := a.(k8stesting.PatchAction); ok {
			crds <- p.GetName()
			return true, &unstructured.Unstructured{}, nil
		}
		return true, nil, apierrors.NewNotFound(schema.GroupResource{}, "addresspools.wayleave.dev")
	})
	got := make(chan string, 4)
	w.granted = func(_, after *corev1.Service) { got <- ips(after) }
	w.putPool(lbPool("lan", "192.0.2.1"))
	w.show(-1, -1)
	w.put(lbService("a"))
	show := w.serviceEvents
	w.serviceEvents = nil
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	b := &Balancer{Client: w.client, Dynamic: w.dynamic, Store: w.store, Default: true,
		Log:    slog.New(slog.DiscardHandler),
		Report: func(string, []model.Problem) {}, SetCondition: func(error) {}}
	go func() { done <- b.Run(ctx) }()
	if n := <-crds; n != "addresspools.wayleave.dev" {
		t.Errorf("made %s", n)
	}
	if err := w.store.Write(func(m *model.Writer) { show[0](m) }); err != nil {
		t.Fatal(err)
	}
	select {
	case a := <-got:
		if a != "192.0.2.1" {
			t.Errorf("it got %q", a)
		}
	case <-time.After(10 * time.Second):
		t.Error("it got nothing")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended by %v", err)
	}
}

// A write that the API took and that failed for us, then a watch that shows the version
// of before, then a read that fails: the address is not free, though all that was read
// says so.
func TestAFailedWriteThatWasTakenKeepsItsAddress(t *testing.T) {
	w := newFakeAPI(t)
	w.granted = func(_, after *corev1.Service) {
		for _, o := range w.services {
			if o.Name != after.Name && ips(o) != "" && ips(o) == ips(after) {
				t.Errorf("%s got %s, which %s has", after.Name, ips(after), o.Name)
			}
		}
	}
	w.putPool(lbPool("lan", "192.0.2.1"))
	w.show(-1, -1)
	w.put(lbService("a"))
	e := w.elect(nil)
	failure := apierrors.NewServerTimeout(schema.GroupResource{}, "patch", 1)
	w.fault = func() (error, bool) { return failure, true }
	if err := e.round(t.Context()); err == nil || ips(w.services["a"]) != "192.0.2.1" {
		t.Fatalf("the write gave %v, and a has %q", err, ips(w.services["a"]))
	}
	w.put(lbService("b"))
	first := true
	w.fault = func() (error, bool) { // the read of a fails, what comes after it works
		defer func() { first = false }()
		if first {
			return failure, false
		}
		return nil, false
	}
	shown := w.serviceEvents[0] // a, as it was before the write
	w.serviceEvents = append([]func(*model.Writer){shown}, w.serviceEvents[2:]...)
	w.show(-1, -1)
	_ = e.round(t.Context())
	w.fault = func() (error, bool) { return nil, false }
	w.rest(e)
	if ips(w.services["a"]) != "192.0.2.1" || ips(w.services["b"]) != "" {
		t.Errorf("a has %q, b %q", ips(w.services["a"]), ips(w.services["b"]))
	}
}
