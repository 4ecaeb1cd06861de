package writeback

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"wayleave.dev/ingress"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/source"
)

// ingressWorld is an API behind client-go's fake, and the store that its watch would fill.
type ingressWorld struct {
	t      *testing.T
	client *fake.Clientset
	store  *model.Store
	w      *Ingresses
	mu     sync.Mutex
	said   error
}

func newIngressWorld(t *testing.T, objects ...runtime.Object) *ingressWorld {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	x := &ingressWorld{t: t, client: fake.NewClientset(objects...), store: store}
	x.w = &Ingresses{Client: x.client, Store: store, Settings: ingress.Settings{Default: true},
		Selector: map[string]string{"app.kubernetes.io/name": "wayleave"},
		HTTP:     10080, HTTPS: 10443, NodeAddresses: true, Log: slog.New(slog.DiscardHandler),
		SetCondition: func(err error) {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.said = err
		}}
	return x
}

// run starts the writer, with what the API holds as what the watch has said.
func (x *ingressWorld) run() {
	x.follow()
	x.store.MarkSynced(model.AllKinds())
	ctx, cancel := context.WithCancel(x.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = x.w.Run(ctx) }()
	x.t.Cleanup(func() { cancel(); <-done; _ = x.store.Close() })
}

// follow is the watch: it brings what the API holds into the store.
func (x *ingressWorld) follow() {
	x.t.Helper()
	ctx := context.WithoutCancel(x.t.Context())
	ings, err := x.client.NetworkingV1().Ingresses("").List(ctx, metav1.ListOptions{})
	classes, err2 := x.client.NetworkingV1().IngressClasses().List(ctx, metav1.ListOptions{})
	services, err3 := x.client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	nodes, err4 := x.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err := errors.Join(err, err2, err3, err4); err != nil {
		x.t.Fatal(err)
	}
	err = x.store.Write(func(w *model.Writer) {
		gone := map[model.Name]bool{}
		for _, n := range w.Names(model.IngressKind) {
			gone[n] = true
		}
		for i := range ings.Items {
			o, _ := source.Ingress(&ings.Items[i])
			w.PutIngress(o)
			delete(gone, o.Name)
		}
		for n := range gone {
			w.Delete(model.IngressKind, n)
		}
		for i := range classes.Items {
			o, _ := source.IngressClass(&classes.Items[i])
			w.PutIngressClass(o)
		}
		for i := range services.Items {
			o, _ := source.Service(&services.Items[i])
			w.PutService(o)
		}
		for i := range nodes.Items {
			o, _ := source.Node(&nodes.Items[i])
			w.PutNode(o)
		}
	})
	if err != nil {
		x.t.Fatal(err)
	}
}

// status waits until the Ingress has these addresses.
func (x *ingressWorld) status(name, want string) {
	x.t.Helper()
	testnet.Eventually(x.t, 10*time.Second, func() error {
		x.follow()
		i, err := x.client.NetworkingV1().Ingresses("shop").Get(x.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		var got []string
		for _, g := range i.Status.LoadBalancer.Ingress {
			got = append(got, g.IP+g.Hostname)
		}
		if text := strings.Join(got, " "); text != want {
			return fmt.Errorf("%s has %q, want %q", name, text, want)
		}
		return nil
	})
}

func (x *ingressWorld) service(change func(*corev1.Service)) {
	x.t.Helper()
	services := x.client.CoreV1().Services(DNSNamespace)
	testnet.Eventually(x.t, 10*time.Second, func() error {
		s, err := services.Get(x.t.Context(), IngressService, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(s)
		_, err = services.Update(x.t.Context(), s, metav1.UpdateOptions{})
		return err
	})
	x.follow()
}

func apiIngress(name, class string) *networkingv1.Ingress {
	i := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	if class != "" {
		i.Spec.IngressClassName = &class
	}
	return i
}

func readyNode(name, ip string, ready corev1.ConditionStatus) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}, Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: ready}}}}
}

// The status follows the Service, else the nodes, and leaves with the class.
func TestStatusOfIngresses(t *testing.T) {
	x := newIngressWorld(t, apiIngress("ours", "wayleave"), apiIngress("none", ""), apiIngress("theirs", "other"),
		readyNode("b", "192.0.2.2", "True"), readyNode("a", "192.0.2.1", "True"), readyNode("c", "192.0.2.3", "False"))
	x.run()
	x.status("ours", "192.0.2.1 192.0.2.2")
	x.status("none", "192.0.2.1 192.0.2.2")
	x.status("theirs", "")
	x.service(func(s *corev1.Service) {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.7"}, {Hostname: "lb.example"}}
	})
	x.status("ours", "198.51.100.7 lb.example")
	x.status("none", "198.51.100.7 lb.example")
	// Somebody writes something else: it is put right.
	i, err := x.client.NetworkingV1().Ingresses("shop").Get(t.Context(), "ours", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	i.Status.LoadBalancer.Ingress = []networkingv1.IngressLoadBalancerIngress{{IP: "203.0.113.1"}}
	if _, err := x.client.NetworkingV1().Ingresses("shop").Update(t.Context(), i, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	x.status("ours", "198.51.100.7 lb.example")
	other := "other"
	i.Spec.IngressClassName = &other
	i.Status.LoadBalancer.Ingress = []networkingv1.IngressLoadBalancerIngress{{IP: "198.51.100.7"},
		{Hostname: "lb.example"}}
	if _, err := x.client.NetworkingV1().Ingresses("shop").Update(t.Context(), i, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	x.status("ours", "")
	if err := x.client.NetworkingV1().Ingresses("shop").Delete(t.Context(), "none",
		metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	x.service(func(s *corev1.Service) { s.Status.LoadBalancer.Ingress = nil })
	x.status("theirs", "")
	// Without ports of nodes no address is told that would not answer.
	x2 := newIngressWorld(t, apiIngress("ours", "wayleave"), readyNode("a", "192.0.2.1", "True"))
	x2.w.NodeAddresses = false
	x2.run()
	x2.service(func(s *corev1.Service) {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.7"}}
	})
	x2.status("ours", "198.51.100.7")
	x2.service(func(s *corev1.Service) { s.Status.LoadBalancer.Ingress = nil })
	x2.status("ours", "")
}

func TestIngressClassAndServiceAreMade(t *testing.T) {
	x := newIngressWorld(t)
	x.run()
	var svc *corev1.Service
	testnet.Eventually(t, 10*time.Second, func() (err error) {
		if _, err := x.client.NetworkingV1().IngressClasses().Get(t.Context(), "wayleave",
			metav1.GetOptions{}); err != nil {
			return err
		}
		svc, err = x.client.CoreV1().Services(DNSNamespace).Get(t.Context(), IngressService, metav1.GetOptions{})
		return err
	})
	c, err := x.client.NetworkingV1().IngressClasses().Get(t.Context(), "wayleave", metav1.GetOptions{})
	if err != nil || c.Spec.Controller != "wayleave.dev/ingress" || c.Annotations[defaultClass] != "true" {
		t.Errorf("the class is %+v, %v", c, err)
	}
	if svc.Spec.Type != "LoadBalancer" || svc.Spec.ExternalTrafficPolicy != "Local" || len(svc.Spec.Ports) != 2 ||
		svc.Spec.Ports[1].TargetPort != intstr.FromInt32(10443) {
		t.Errorf("the Service is %+v", svc.Spec)
	}
	// What is its owner's stays, what is ours is put right.
	x.service(func(s *corev1.Service) {
		s.Spec.ExternalTrafficPolicy = "Cluster"
		s.Spec.Selector = map[string]string{"app": "x"}
		s.Spec.Ports = []corev1.ServicePort{{Name: "mine", Protocol: "TCP", Port: 80,
			TargetPort: intstr.FromInt32(8080)}, {Name: "more", Protocol: "TCP", Port: 81}}
	})
	testnet.Eventually(t, 10*time.Second, func() error {
		s, err := x.client.CoreV1().Services(DNSNamespace).Get(t.Context(), IngressService, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(s.Spec.Selector) != 1 || s.Spec.Selector["app.kubernetes.io/name"] != "wayleave" ||
			len(s.Spec.Ports) != 3 || s.Spec.Ports[0].Name != "mine" || s.Spec.Ports[0].TargetPort != intstr.FromInt32(
			10080) || s.Spec.ExternalTrafficPolicy != "Cluster" {
			return fmt.Errorf("it is %+v", s.Spec)
		}
		return nil
	})
	if err := x.client.CoreV1().Services(DNSNamespace).Delete(t.Context(), IngressService,
		metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := x.store.Write(func(w *model.Writer) { w.Delete(model.ServiceKind, x.w.service()) }); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		_, err := x.client.CoreV1().Services(DNSNamespace).Get(t.Context(), IngressService, metav1.GetOptions{})
		return err
	})
}

// Another default class stays the only one, and a class of our name that is another's is
// named.
func TestIngressClassBesideOthers(t *testing.T) {
	x := newIngressWorld(t, &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "nginx",
		Annotations: map[string]string{defaultClass: "true"}}})
	if err := x.w.ensureClass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c, err := x.client.NetworkingV1().IngressClasses().Get(t.Context(), "wayleave",
		metav1.GetOptions{}); err != nil || c.Annotations[defaultClass] != "" {
		t.Errorf("the class is %+v, %v", c, err)
	}
	y := newIngressWorld(t, &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "wayleave"},
		Spec: networkingv1.IngressClassSpec{Controller: "x.example/y"}})
	if err := y.w.ensureClass(t.Context()); err == nil || !strings.Contains(err.Error(),
		`spec.controller: it is "x.example/y"`) {
		t.Errorf("the error is %v", err)
	}
}

// A status that cannot be written is tried again, and named meanwhile.
func TestAStatusIsWrittenAgain(t *testing.T) {
	x := newIngressWorld(t, apiIngress("ours", "wayleave"), readyNode("a", "192.0.2.1", "True"))
	fails := 3
	x.client.PrependReactor("patch", "ingresses", func(k8stesting.Action) (bool, runtime.Object, error) {
		x.mu.Lock()
		defer x.mu.Unlock()
		if fails--; fails == 2 {
			return true, nil, errors.New("away")
		} else if fails == 1 {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "ingresses"}, "ours",
				errors.New("no"))
		}
		return false, nil, nil
	})
	x.run()
	x.status("ours", "192.0.2.1")
	testnet.Eventually(t, 10*time.Second, func() error {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.said != nil || fails > 0 {
			return fmt.Errorf("%v, %d failures left", x.said, fails)
		}
		return nil
	})
}

// Another controller may serve Ingresses without a class although its own is no default: ingress-nginx does with
// --watch-ingress-without-class.
func TestTheClassIsNoDefaultBesideAnotherController(t *testing.T) {
	for other, beside := range map[string]string{"": "", "k8s.io/ingress-nginx": "other"} {
		var objects []runtime.Object
		if other != "" {
			objects = append(objects, &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "other"},
				Spec: networkingv1.IngressClassSpec{Controller: other}})
		}
		told := ""
		c := fake.NewClientset(objects...)
		w := &Ingresses{Client: c, Settings: ingress.Settings{Default: true}, Beside: func(s string) { told = s }}
		for range 2 { // later rounds change nothing
			if err := w.ensureClass(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		class, err := c.NetworkingV1().IngressClasses().Get(t.Context(), "wayleave", metav1.GetOptions{})
		if err != nil || (class.Annotations[defaultClass] == "true") != (other == "") || told != beside {
			t.Errorf("beside %q: %v, told %q, %v", other, class.Annotations, told, err)
		}
	}
}
