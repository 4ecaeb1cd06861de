package sandbox

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	kubesource "wayleave.dev/source/kubernetes"
)

// cluster is a fake one that chooses names as an API server does.
func cluster(objects ...runtime.Object) (*kubesource.Client, *fake.Clientset) {
	api := fake.NewClientset(objects...)
	api.PrependReactor("create", "namespaces", func(a clienttesting.Action) (bool, runtime.Object, error) {
		ns := a.(clienttesting.CreateAction).GetObject().(*corev1.Namespace)
		ns.Name = ns.GenerateName + "abcde"
		return false, nil, nil
	})
	return &kubesource.Client{Interface: api}, api
}

func namespace(name, purpose string, age time.Duration) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{Label: purpose},
		CreationTimestamp: metav1.NewTime(time.Now().Add(-age))}}
}

// What an earlier run has left is removed; a run beside this one, and namespaces of others, are not touched.
func TestOnlyOwnNamespacesAreRemoved(t *testing.T) {
	client, api := cluster(namespace("wayleave-test-old", "connectivity", 2*time.Hour),
		namespace("wayleave-test-beside", "connectivity", time.Minute),
		namespace("wayleave-test-other", "speed", 2*time.Hour),
		namespace("shop", "connectivity", 2*time.Hour))
	s, err := Open(t.Context(), client, "connectivity", "image")
	if err != nil || s.Name() != "wayleave-test-abcde" {
		t.Fatalf("%v, %s", err, s.Name())
	}
	if err := s.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context()); err != nil {
		t.Errorf("removed again: %v", err)
	}
	for name, there := range map[string]bool{"wayleave-test-old": false, "wayleave-test-abcde": false,
		"wayleave-test-beside": true, "wayleave-test-other": true, "shop": true} {
		_, err := api.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) == there {
			t.Errorf("namespace %s is there: %v; want %v", name, !there, there)
		}
	}
}

// A namespace that stays is an error within the time of the caller.
func TestANamespaceThatStaysIsAnError(t *testing.T) {
	client, api := cluster()
	s, err := Open(t.Context(), client, "connectivity", "image")
	if err != nil {
		t.Fatal(err)
	}
	api.PrependReactor("delete", "namespaces", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Remove(ctx); err == nil || !strings.Contains(err.Error(), "wayleave-test-abcde") {
		t.Errorf("%v", err)
	}
}

// Pods have no token and no right, go where they are sent, and wait for the account of a new namespace.
func TestPodsOfATest(t *testing.T) {
	client, api := cluster()
	s, err := Open(t.Context(), client, "connectivity", "image:v1")
	if err != nil {
		t.Fatal(err)
	}
	tries := 0
	api.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		if tries++; tries == 1 {
			return true, nil, errors.New("serviceaccount default not found")
		}
		return false, nil, nil
	})
	if err := s.Start(t.Context(), []Pod{{"server-0", "n1", "server"}}, 8080, "/wayleave", "x"); err != nil {
		t.Fatal(err)
	}
	p, err := api.CoreV1().Pods(s.Name()).Get(t.Context(), "server-0", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := p.Spec.Containers[0]
	if p.Spec.NodeName != "n1" || *p.Spec.AutomountServiceAccountToken || !*p.Spec.SecurityContext.RunAsNonRoot ||
		*c.SecurityContext.AllowPrivilegeEscalation || !*c.SecurityContext.ReadOnlyRootFilesystem ||
		c.SecurityContext.Capabilities.Drop[0] != "ALL" || c.Image != "image:v1" ||
		c.ImagePullPolicy != corev1.PullIfNotPresent {
		t.Errorf("%+v", p.Spec)
	}
	p.Status = corev1.PodStatus{Phase: corev1.PodPending, PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
		ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{
			Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no such image"}}}}}
	if _, err := api.CoreV1().Pods(s.Name()).UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	all, err := s.Pods(t.Context())
	if err != nil || len(all) != 1 || all[0].Ready || all[0].Problem != "Pending ErrImagePull no such image" ||
		len(all[0].Addrs) != 2 || all[0].App != "server" || all[0].Node != "n1" {
		t.Errorf("%v: %+v", err, all)
	}
}

// Services, policies and Ingresses are what their names say.
func TestObjectsOfATest(t *testing.T) {
	client, api := cluster(&networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "wayleave"}})
	s, err := Open(t.Context(), client, "connectivity", "image")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []Service{{Name: "a", App: "x", Type: "ClusterIP", TCP: 80, UDP: 53},
		{Name: "b", App: "x", Type: "ClusterIP", Headless: true, TCP: 80}, {Name: "c", Type: "ExternalName",
			Target: "a.b"}} {
		if _, err := s.CreateService(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		o, err := api.CoreV1().Services(s.Name()).Get(t.Context(), v.Name, metav1.GetOptions{})
		if err != nil || (o.Spec.ClusterIP == "None") != v.Headless || o.Spec.ExternalName != v.Target ||
			(len(o.Spec.Ports) == 2) != (v.UDP != 0) || (o.Spec.IPFamilyPolicy != nil) != (v.Target == "") {
			t.Errorf("%v: %+v", err, o.Spec)
		}
	}
	for name, from := range map[string]string{"closed": "", "guarded": "client"} {
		if err := s.Isolate(t.Context(), name, from); err != nil {
			t.Fatal(err)
		}
		o, err := api.NetworkingV1().NetworkPolicies(s.Name()).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || (len(o.Spec.Ingress) == 1) != (from != "") || o.Spec.PodSelector.MatchLabels["app"] != name {
			t.Errorf("%v: %+v", err, o.Spec)
		}
	}
	for class, want := range map[string]bool{"wayleave": true, "nginx": false} {
		if got, err := s.HasClass(t.Context(), class); err != nil || got != want {
			t.Errorf("class %s: %v, %v", class, got, err)
		}
	}
	if err := s.CreateIngress(t.Context(), "wayleave", "a.test", "a", 80); err != nil {
		t.Fatal(err)
	}
	if got, err := s.IngressAddrs(t.Context(), "a"); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

// Nodes that are not ready, or run another system, get no pods.
func TestNodesThatRunPods(t *testing.T) {
	node := func(name, os string, ready corev1.ConditionStatus) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
			NodeInfo:   corev1.NodeSystemInfo{OperatingSystem: os},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}},
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"},
				{Type: corev1.NodeExternalIP, Address: "198.51.100.1"}}}}
	}
	client, _ := cluster(node("b", "linux", corev1.ConditionTrue), node("a", "", corev1.ConditionTrue),
		node("w", "windows", corev1.ConditionTrue), node("d", "linux", corev1.ConditionFalse))
	got, err := Nodes(t.Context(), client)
	if err != nil || len(got) != 2 || got[0].Name != "a" || got[1].Name != "b" || len(got[0].Addrs) != 1 {
		t.Errorf("%v: %+v", err, got)
	}
}

// A command on a node is root in the node's network, sees its files, and leaves nothing; a node that does not answer is
// an error of its own.
func TestACommandRunsOnEachNode(t *testing.T) {
	pods := map[string]*corev1.Pod{}
	start := func(a clienttesting.Action) (bool, runtime.Object, error) {
		p := a.(clienttesting.CreateAction).GetObject().(*corev1.Pod)
		p.Status.Phase = map[string]corev1.PodPhase{"n1": corev1.PodSucceeded, "n2": corev1.PodFailed}[p.Spec.NodeName]
		pods[p.Spec.NodeName] = p
		return false, nil, nil
	}
	client, api := cluster()
	api.PrependReactor("create", "pods", start)
	out, err := OnNodes(t.Context(), client, "check", "image", []string{"n1", "n2"}, Access{Settings: "mode: ipvs"},
		"/wayleave", "check")
	if err != nil || len(out) != 2 || string(out["n1"].Text) != "fake logs" || out["n1"].Failed || !out["n2"].Failed {
		t.Fatalf("%v: %+v", err, out)
	}
	p := pods["n1"]
	c := p.Spec.Containers[0]
	if !p.Spec.HostNetwork || !p.Spec.HostPID || !*c.SecurityContext.Privileged || !c.VolumeMounts[0].ReadOnly ||
		c.VolumeMounts[0].MountPath != Root || c.ReadinessProbe != nil || *p.Spec.AutomountServiceAccountToken ||
		p.Spec.RestartPolicy != corev1.RestartPolicyNever || *p.Spec.SecurityContext.RunAsUser != 0 {
		t.Errorf("%+v", p.Spec)
	}
	client, api = cluster() // the fake leaves what is in a namespace that is deleted
	api.PrependReactor("create", "pods", start)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := OnNodes(ctx, client, "check", "image", []string{"n3"}, Access{Writable: true},
		"/wayleave"); err == nil {
		t.Error("a node that does not answer is no error")
	}
	if pods["n3"].Spec.Containers[0].VolumeMounts[0].ReadOnly {
		t.Error("a writable file system is not writable")
	}
	left, err := api.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(left.Items) > 0 {
		t.Errorf("%v: left: %v", err, left.Items)
	}
}
