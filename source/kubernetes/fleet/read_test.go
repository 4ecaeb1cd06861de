package fleet

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	kubesource "wayleave.dev/source/kubernetes"
)

// fakeCluster has a page /version whose clock is ahead, and objects.
func fakeCluster(t *testing.T, ahead time.Duration, objects ...runtime.Object) (Fleet, *fake.Clientset) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
		fmt.Fprint(w, `{"gitVersion":"v1.36.3"}`)
	}))
	t.Cleanup(srv.Close)
	api := fake.NewClientset(objects...)
	api.PrependReactor("create", "selfsubjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object,
		error) {
		r := a.(clienttesting.CreateAction).GetObject().(*authv1.SelfSubjectAccessReview)
		r.Status.Allowed = true
		return true, r, nil
	})
	pools := map[schema.GroupVersionResource]string{
		{Group: "wayleave.dev", Version: "v1alpha1", Resource: "addresspools"}: "AddressPoolList",
		{Version: "v1", Resource: "configmaps"}:                                "ConfigMapList"}
	own := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), pools,
		configMap("wayleave"), configMap("other"))
	return Fleet{Client: &kubesource.Client{Interface: api, Dynamic: own, REST: &rest.Config{Host: srv.URL},
		Server: srv.URL}, Namespace: "kube-system"}, api
}

func configMap(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"namespace": "kube-system", "name": name}}}
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func pod(name, node string, ready corev1.ConditionStatus) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: meta("kube-system", name), Spec: corev1.PodSpec{NodeName: node,
		Containers: []corev1.Container{{Name: "agent", Image: "image"}}}}
	p.Labels = map[string]string{"app.kubernetes.io/name": "wayleave"}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "agent", RestartCount: 2, State: corev1.ContainerState{
		Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off"}}}}
	return p
}

func lease(namespace, name, holder string, at time.Time) *coordinationv1.Lease {
	renewed := metav1.NewMicroTime(at)
	return &coordinationv1.Lease{ObjectMeta: meta(namespace, name), Spec: coordinationv1.LeaseSpec{
		HolderIdentity: &holder, RenewTime: &renewed}}
}

func TestAClusterIsRead(t *testing.T) {
	const ahead = time.Minute
	now := time.Now().Add(ahead)
	f, api := fakeCluster(t, ahead,
		&corev1.Node{ObjectMeta: meta("", "n1"), Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.0.0/24"}},
			Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KernelVersion: "6.1.0", OperatingSystem: "linux"},
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
				Images:     []corev1.ContainerImage{{Names: []string{"a", "b"}}}}},
		lease("kube-node-lease", "n1", "n1", now.Add(-5*time.Second)),
		lease("kube-system", "wayleave-writer", "w-1", now.Add(-3*time.Second)),
		lease("wayleave-peers", "wayleave-node-n1", "", now),
		pod("z-ready", "n1", corev1.ConditionTrue), pod("a-starts", "n1", corev1.ConditionFalse),
		&appsv1.DaemonSet{ObjectMeta: meta("kube-system", "wayleave"), Status: appsv1.DaemonSetStatus{
			DesiredNumberScheduled: 3, NumberReady: 2, UpdatedNumberScheduled: 1}},
		&appsv1.Deployment{ObjectMeta: meta("x", "y")},
		&corev1.Service{ObjectMeta: meta("kube-system", "kube-dns"), Spec: corev1.ServiceSpec{
			ClusterIPs: []string{"10.96.0.10"}}},
		&corev1.ConfigMap{ObjectMeta: meta("kube-system", "wayleave-settings"), Data: map[string]string{
			"config.yaml": "x"}},
		&networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "nginx", Annotations: map[string]string{
			"ingressclass.kubernetes.io/is-default-class": "true"}},
			Spec: networkingv1.IngressClassSpec{Controller: "c"}})
	api.PrependReactor("create", "selfsubjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object,
		error) {
		r := a.(clienttesting.CreateAction).GetObject().(*authv1.SelfSubjectAccessReview)
		r.Status.Allowed = r.Spec.ResourceAttributes.Resource != "daemonsets"
		return true, r, nil
	})
	c, err := f.Read(t.Context())
	if err != nil || len(c.Errors) != 0 {
		t.Fatalf("%v, %v", err, c.Errors)
	}
	if c.Version != "v1.36.3" || (c.Skew+ahead).Abs() > 5*time.Second {
		t.Errorf("version %s, skew %s", c.Version, c.Skew)
	}
	n := c.Nodes[0]
	if n.Name != "n1" || !n.Ready || n.Kernel != "6.1.0" || len(n.Images) != 2 || n.PodCIDRs[0] != "10.244.0.0/24" ||
		(n.Heartbeat-5*time.Second).Abs() > 3*time.Second {
		t.Errorf("%+v", n)
	}
	if len(c.Agents) != 2 || c.Agents[0].Name != "z-ready" || c.Agents[0].Containers[0].Restarts != 2 ||
		c.Agents[0].Containers[0].Problem != "CrashLoopBackOff: back-off" {
		t.Errorf("agents: %+v", c.Agents)
	}
	if c.Leader != "w-1" || (c.Renewed-3*time.Second).Abs() > 3*time.Second || len(c.Leases) != 1 || !c.HasPools {
		t.Errorf("leader %s, %s; %d Leases, pools %v", c.Leader, c.Renewed, len(c.Leases), c.HasPools)
	}
	want := Workload{"DaemonSet", "kube-system", "wayleave", nil, 3, 2, 1}
	if len(c.Workloads) != 2 || fmt.Sprint(c.Workloads[0]) != fmt.Sprint(want) || c.Workloads[1].Desired != 1 {
		t.Errorf("workloads: %+v", c.Workloads)
	}
	if !slices.Equal(c.DNS, []string{"10.96.0.10"}) || c.DefaultClasses["nginx"] != "c" ||
		c.Settings["wayleave-settings"].Data["config.yaml"] != "x" || len(c.Settings) != 1 ||
		!slices.Equal(c.Denied, []string{"create daemonsets.apps"}) {
		t.Errorf("%v, %v, %v, %v", c.DNS, c.DefaultClasses, c.Settings, c.Denied)
	}
}

// What the caller may not read is named, and the rest is read.
func TestWhatCannotBeReadIsNamed(t *testing.T) {
	for resource, part := range map[string]string{"nodes": "nodes", "pods": "pods", "daemonsets": "workloads",
		"deployments": "workloads", "leases": "leases", "services": "services", "configmaps": "settings",
		"ingressclasses": "kinds", "selfsubjectaccessreviews": "rights"} {
		f, api := fakeCluster(t, 0, &corev1.Node{ObjectMeta: meta("", "n1")})
		api.PrependReactor("*", resource, func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, errors.New("forbidden: " + resource)
		})
		c, err := f.Read(t.Context())
		if err != nil {
			t.Errorf("%s: %v", resource, err)
			continue
		}
		if !strings.Contains(c.Errors[part], "forbidden: "+resource) {
			t.Errorf("%s: part %s: %v", resource, part, c.Errors)
		}
		if len(c.Errors) > 2 || resource != "nodes" && len(c.Nodes) != 1 {
			t.Errorf("%s: %v, %d nodes", resource, c.Errors, len(c.Nodes))
		}
	}
}

// A bundle has no ConfigMap of others.
func TestConfigMapsOfABundleAreOurs(t *testing.T) {
	f, _ := fakeCluster(t, 0)
	list, more, err := f.Objects(t.Context(), Kind{"", "v1", "configmaps", true}, 10)
	if text := fmt.Sprint(list); err != nil || more || !strings.Contains(text, "wayleave") ||
		strings.Contains(text, "other") {
		t.Errorf("%v, %v: %s", err, more, text)
	}
}
