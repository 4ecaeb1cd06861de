package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// fakeAPI is the smallest one that a reflector can use: lists by JSON, and
// watches that can be fed, ended and refused.
type fakeAPI struct {
	mu      sync.Mutex
	version int
	objects map[string]map[string]runtime.Object // resource → name → object
	watches map[string][]chan []byte
	down    bool
	mute    bool            // watches tell nothing
	unknown map[string]bool // resources that are not defined (yet)
	url     string
	// refused are names of single objects that may not be read.
	refused map[string]bool
	// broken are names of single objects for which the server fails.
	broken map[string]bool
	// asked are the queries for Secrets: path and field selector.
	asked map[string]bool
}

func newFakeAPI(t *testing.T) (*fakeAPI, kubernetes.Interface) {
	a := &fakeAPI{objects: map[string]map[string]runtime.Object{}, watches: map[string][]chan []byte{}, version: 1}
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	t.Cleanup(a.cut)
	a.url = srv.URL
	c, err := kubernetes.NewForConfig(&rest.Config{Host: srv.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return a, c
}

func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	q := r.URL.Query()
	a.mu.Lock()
	if a.down {
		a.mu.Unlock()
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if a.unknown[resource] {
		a.mu.Unlock()
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: 404})
		return
	}
	one, single := strings.CutPrefix(q.Get("fieldSelector"), "metadata.name=")
	if resource == "secrets" {
		if a.asked == nil {
			a.asked = map[string]bool{}
		}
		a.asked[r.URL.Path+" "+q.Get("fieldSelector")] = true
	}
	if single && a.refused[one] {
		a.mu.Unlock()
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status: "Failure", Reason: metav1.StatusReasonForbidden, Code: 403, Message: "no"})
		return
	}
	if single && a.broken[one] {
		a.mu.Unlock()
		w.WriteHeader(http.StatusInternalServerError)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status: "Failure", Reason: metav1.StatusReasonInternalError, Code: 500, Message: "no store"})
		return
	}
	if q.Get("sendInitialEvents") == "true" { // streaming lists: an older server refuses
		a.mu.Unlock()
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status: "Failure", Reason: metav1.StatusReasonInvalid, Code: 422})
		return
	}
	if q.Get("watch") != "" {
		ch := make(chan []byte, 16)
		a.watches[resource] = append(a.watches[resource], ch)
		a.mu.Unlock()
		w.(http.Flusher).Flush()
		for {
			select {
			case <-r.Context().Done():
				return
			case b, ok := <-ch:
				if !ok {
					return
				}
				_, _ = w.Write(b)
				w.(http.Flusher).Flush()
			}
		}
	}
	defer a.mu.Unlock()
	var items []runtime.Object
	for _, o := range a.objects[resource] {
		if node, only := strings.CutPrefix(q.Get("fieldSelector"), "spec.nodeName="); only &&
			o.(*corev1.Pod).Spec.NodeName != node {
			continue
		}
		if single && o.(metav1.Object).GetName() != one {
			continue
		}
		items = append(items, o)
	}
	if items == nil {
		items = []runtime.Object{}
	}
	kinds := map[string][2]string{
		"services": {"ServiceList", "v1"}, "endpointslices": {"EndpointSliceList", "discovery.k8s.io/v1"},
		"nodes": {"NodeList", "v1"}, "namespaces": {"NamespaceList", "v1"}, "pods": {"PodList", "v1"},
		"networkpolicies": {"NetworkPolicyList", "networking.k8s.io/v1"}, "addresspools": {"AddressPoolList",
			"wayleave.dev/v1alpha1"},
		"ingresses": {"IngressList", "networking.k8s.io/v1"}, "servicecidrs": {"ServiceCIDRList",
			"networking.k8s.io/v1"}, "ingressclasses": {"IngressClassList", "networking.k8s.io/v1"},
		"secrets": {"SecretList", "v1"}, "bgppeers": {"BGPPeerList", "wayleave.dev/v1alpha1"},
		"bgpconfigurations": {"BGPConfigurationList", "wayleave.dev/v1alpha1"},
		"bgpadvertisements": {"BGPAdvertisementList", "wayleave.dev/v1alpha1"},
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": kinds[resource][0], "apiVersion": kinds[resource][1],
		"metadata": map[string]string{"resourceVersion": fmt.Sprint(a.version)}, "items": items})
}

// put sets an object and tells the watchers, who is told nothing when it is hidden.
func (a *fakeAPI) put(t *testing.T, resource string, o runtime.Object, event string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	m := o.(metav1.Object)
	m.SetResourceVersion(fmt.Sprint(a.version))
	if a.objects[resource] == nil {
		a.objects[resource] = map[string]runtime.Object{}
	}
	if event == "DELETED" {
		delete(a.objects[resource], m.GetName())
	} else {
		a.objects[resource][m.GetName()] = o
	}
	b, err := json.Marshal(map[string]any{"type": event, "object": o})
	if err != nil {
		t.Fatal(err)
	}
	if a.mute { // the event is lost
		return
	}
	for _, ch := range a.watches[resource] {
		ch <- b
	}
}

// cut ends all watches.
func (a *fakeAPI) cut() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.watches {
		for _, ch := range l {
			close(ch)
		}
	}
	a.watches = map[string][]chan []byte{}
}

func apiService(name string, port int32) *corev1.Service {
	return &corev1.Service{TypeMeta: metav1.TypeMeta{Kind: "Service", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.9", Ports: []corev1.ServicePort{{Port: port}}}}
}

func start(t *testing.T, client kubernetes.Interface) (*model.Store, *sync.Map) {
	t.Helper()
	return startSource(t, &Source{Client: client})
}

func startSource(t *testing.T, s *Source) (*model.Store, *sync.Map) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var problems sync.Map
	s.Store, s.NodeName, s.Log = store, "node1", slog.New(slog.DiscardHandler)
	s.Report = func(_ string, n model.Name, p []model.Problem) { problems.Store(n.Name, len(p)) }
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = store.Close() })
	return store, &problems
}

func TestObjectsFlowIntoTheModel(t *testing.T) {
	api, client := newFakeAPI(t)
	api.put(t, "services", apiService("web", 80), "ADDED")
	store, problems := start(t, client)
	all := model.ServiceKind | model.EndpointSliceKind | model.NodeKind | model.NamespaceKind | model.PodKind
	if err := store.WaitSynced(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	web := model.Name{Namespace: "default", Name: "web"}
	if _, ok := store.Snapshot().Service(web); !ok {
		t.Fatal("the listed service is missing")
	}
	watching(t, api, "services", "endpointslices")
	port := int32(80)
	api.put(t, "endpointslices", &discoveryv1.EndpointSlice{TypeMeta: metav1.TypeMeta{Kind: "EndpointSlice",
		APIVersion: "discovery.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: "IPv4", Ports: []discoveryv1.EndpointPort{{Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.0.1"}}}}, "ADDED")
	api.put(t, "services", apiService("bad", 0), "ADDED")
	testnet.Eventually(t, 10*time.Second, func() error {
		snap := store.Snapshot()
		n := 0
		for range snap.EndpointSlices(web) {
			n++
		}
		if bad, _ := problems.Load("bad"); n != 1 || bad != 1 {
			return fmt.Errorf("%d slices, %v problems", n, bad)
		}
		return nil
	})
	api.put(t, "services", apiService("web", 80), "DELETED")
	testnet.Eventually(t, 10*time.Second, func() error {
		if _, ok := store.Snapshot().Service(web); ok {
			return fmt.Errorf("still there")
		}
		return nil
	})
}

func watching(t *testing.T, api *fakeAPI, resources ...string) {
	t.Helper()
	testnet.Eventually(t, 10*time.Second, func() error {
		api.mu.Lock()
		defer api.mu.Unlock()
		for _, r := range resources {
			if len(api.watches[r]) == 0 {
				return fmt.Errorf("nobody watches %s", r)
			}
		}
		return nil
	})
}

// While the API server is away the model stays; what was deleted meanwhile goes
// when it is back.
func TestTheModelOutlivesTheAPIServer(t *testing.T) {
	api, client := newFakeAPI(t)
	api.put(t, "services", apiService("stays", 80), "ADDED")
	api.put(t, "services", apiService("goes", 80), "ADDED")
	store, _ := start(t, client)
	if err := store.WaitSynced(t.Context(), model.ServiceKind); err != nil {
		t.Fatal(err)
	}
	watching(t, api, "services")
	api.mu.Lock()
	api.down = true
	delete(api.objects["services"], "goes")
	api.version++
	api.mu.Unlock()
	api.cut()
	if n := store.Snapshot().Count(model.ServiceKind); n != 2 {
		t.Errorf("%d services while the API server is away, want 2", n)
	}
	api.mu.Lock()
	api.down = false
	// A server that has lost its history makes the reflector list again.
	api.mu.Unlock()
	api.put(t, "services", apiService("new", 80), "ADDED")
	watching(t, api, "services")
	gone, err := json.Marshal(map[string]any{"type": "ERROR",
		"object": metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure",
			Reason: metav1.StatusReasonExpired, Code: 410}})
	if err != nil {
		t.Fatal(err)
	}
	api.mu.Lock()
	for _, ch := range api.watches["services"] {
		ch <- gone
	}
	api.mu.Unlock()
	testnet.Eventually(t, 20*time.Second, func() error {
		var names []string
		for s := range store.Snapshot().Services() {
			names = append(names, s.Name.Name)
		}
		if got := strings.Join(names, " "); got != "new stays" {
			return fmt.Errorf("services are %s", got)
		}
		return nil
	})
}

func TestTheKubeletSaysWhereTheAPIServerIs(t *testing.T) {
	conf := "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: k, user: " +
		"u}}]\nclusters: [{name: k, cluster: {server: \"https://192.0.2.1:6443\"}}]\n"
	for _, tc := range []struct{ name, cmdline, file string }{
		{"kubeadm", "", "/etc/kubernetes/kubelet.conf"},
		{"k3s", "", "/var/lib/rancher/k3s/agent/kubelet.kubeconfig"},
		{"command line", "/usr/bin/kubelet\x00--kubeconfig=/opt/odd/place.conf\x00", "/opt/odd/place.conf"},
		{"command line in two words", "kubelet\x00--kubeconfig\x00/opt/odd/place.conf\x00", "/opt/odd/place.conf"},
		{"multi-call binary", "/bin/kube\x00kubelet\x00--kubeconfig=/opt/odd/place.conf\x00", "/opt/odd/place.conf"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			put(t, root, tc.file, conf)
			if tc.cmdline != "" {
				put(t, root, "/proc/77/cmdline", tc.cmdline)
				put(t, root, "/proc/77/status", rootOfNode)
			}
			server, from, err := Host{Root: root}.APIServer()
			if err != nil || server != "https://192.0.2.1:6443" || from != tc.file {
				t.Errorf("found %q in %q, %v", server, from, err)
			}
		})
	}
	for _, tc := range []struct{ in, want string }{
		{strings.Replace(conf, "current-context: c", "current-context: d", 1),
			`current-context: "d" is not among contexts`},
		{strings.Replace(conf, "cluster: k", "cluster: x", 1), `clusters: "x" has no server`},
		{"{", "kubelet.conf"},
	} {
		root := t.TempDir()
		put(t, root, "/etc/kubernetes/kubelet.conf", tc.in)
		if _, _, err := (Host{Root: root}).APIServer(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("error is %v, want %s", err, tc.want)
		}
	}
}

func TestTheKubeletSaysWhereDNSIs(t *testing.T) {
	root := t.TempDir()
	put(t, root, "/var/lib/kubelet/config.yaml",
		"clusterDNS: [10.96.0.10, \"fd00::a\"]\nclusterDomain: example.local\n")
	addrs, domain, err := Host{Root: root}.ClusterDNS()
	if err != nil || len(addrs) != 2 || addrs[0] != netip.MustParseAddr("10.96.0.10") || domain != "example.local" {
		t.Errorf("found %v %q, %v", addrs, domain, err)
	}
	put(t, root, "/proc/5/cmdline", "kubelet\x00--cluster-dns=10.43.0.10\x00--cluster-domain=k3s.local\x00")
	put(t, root, "/proc/5/status", rootOfNode)
	addrs, domain, err = Host{Root: root}.ClusterDNS()
	if err != nil || len(addrs) != 1 || addrs[0] != netip.MustParseAddr("10.43.0.10") || domain != "k3s.local" {
		t.Errorf("found %v %q, %v", addrs, domain, err)
	}
}

func put(t *testing.T, root, file, text string) {
	t.Helper()
	file = filepath.Join(root, file)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Of pods the node's own are watched, and those of all nodes when their names are
// to be verified.
func TestPodsOfThisNodeOrOfAll(t *testing.T) {
	api, client := newFakeAPI(t)
	for _, node := range []string{"node1", "node2"} {
		api.put(t, "pods", &corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "on-" + node},
			Spec:       corev1.PodSpec{NodeName: node},
			Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.244.0.1"}}}},
			"ADDED")
	}
	for all, want := range map[bool]int{false: 1, true: 2} {
		store, _ := startSource(t, &Source{Client: client, AllPods: all})
		if err := store.WaitSynced(t.Context(), model.PodKind); err != nil {
			t.Fatal(err)
		}
		if n := store.Snapshot().Count(model.PodKind); n != want {
			t.Errorf("all %v: %d pods, want %d", all, n, want)
		}
	}
}

// Policies bring the pods of all nodes, with labels, and those without an address; without
// them nothing of that is kept, nor asked for.
func TestPoliciesAreWatchedWhenTheyAreOn(t *testing.T) {
	api, client := newFakeAPI(t)
	for name, ips := range map[string][]corev1.PodIP{"runs": {{IP: "10.244.0.1"}}, "starts": nil} {
		api.put(t, "pods", &corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "u",
				Labels: map[string]string{"app": "web"}},
			Spec: corev1.PodSpec{NodeName: "node2"}, Status: corev1.PodStatus{PodIPs: ips}}, "ADDED")
	}
	api.put(t, "networkpolicies", &networkingv1.NetworkPolicy{TypeMeta: metav1.TypeMeta{Kind: "NetworkPolicy",
		APIVersion: "networking.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "deny"}}, "ADDED")
	on, _ := startSource(t, &Source{Client: client, Policies: true})
	if err := on.WaitSynced(t.Context(), model.PodKind|model.NetworkPolicyKind); err != nil {
		t.Fatal(err)
	}
	snap := on.Snapshot()
	if p, ok := snap.Pod(model.Name{Namespace: "default", Name: "starts"}); !ok || p.Labels["app"] != "web" ||
		snap.Count(model.PodKind) != 2 || snap.Count(model.NetworkPolicyKind) != 1 {
		t.Errorf("the pod is %+v; %d pods, %d policies", p, snap.Count(model.PodKind),
			snap.Count(model.NetworkPolicyKind))
	}
	off, _ := startSource(t, &Source{Client: client, AllPods: true})
	if err := off.WaitSynced(t.Context(), model.PodKind); err != nil {
		t.Fatal(err)
	}
	snap = off.Snapshot()
	if p, ok := snap.Pod(model.Name{Namespace: "default", Name: "runs"}); !ok || p.Labels != nil || p.UID != "" ||
		snap.Count(model.PodKind) != 1 || off.Synced()&model.NetworkPolicyKind != 0 {
		t.Errorf("without policies the pod is %+v; %d pods", p, snap.Count(model.PodKind))
	}
}

// Events that a watch loses are found by the next list: what is new, what is gone, and
// what came after events that were told.
func TestEventsThatAWatchLosesAreFound(t *testing.T) {
	api, client := newFakeAPI(t)
	api.put(t, "services", apiService("old", 80), "ADDED")
	store, _ := startSource(t, &Source{Client: client, RelistEvery: 300 * time.Millisecond})
	if err := store.WaitSynced(t.Context(), model.ServiceKind); err != nil {
		t.Fatal(err)
	}
	watching(t, api, "services")
	api.mu.Lock()
	api.mute = true
	api.mu.Unlock()
	api.put(t, "services", apiService("new", 80), "ADDED")
	api.put(t, "services", apiService("old", 80), "DELETED")
	testnet.Eventually(t, 20*time.Second, func() error {
		snap := store.Snapshot()
		_, gone := snap.Service(model.Name{Namespace: "default", Name: "old"})
		if _, ok := snap.Service(model.Name{Namespace: "default", Name: "new"}); !ok || gone {
			return fmt.Errorf("the new one is there: %v, the old one: %v", ok, gone)
		}
		return nil
	})
}

// The service range is read; where there is no such kind, or no right to it, the node
// starts without.
func TestTheServiceRangeIsRead(t *testing.T) {
	api, client := newFakeAPI(t)
	api.put(t, "servicecidrs", &networkingv1.ServiceCIDR{TypeMeta: metav1.TypeMeta{Kind: "ServiceCIDR",
		APIVersion: "networking.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{
			CIDRs: []string{"10.96.0.0/16", "fd00:96::/112"}}}, "ADDED")
	store, _ := start(t, client)
	if err := store.WaitSynced(t.Context(), model.ServiceCIDRKind); err != nil {
		t.Fatal(err)
	}
	for r := range store.Snapshot().ServiceCIDRs() {
		if got := fmt.Sprint(r.Name, r.CIDRs); got != "kubernetes [10.96.0.0/16 fd00:96::/112]" &&
			got != "kubernetes[10.96.0.0/16 fd00:96::/112]" {
			t.Errorf("the range is %s", got)
		}
	}
	api, client = newFakeAPI(t)
	api.mu.Lock()
	api.unknown = map[string]bool{"servicecidrs": true}
	api.mu.Unlock()
	store, _ = start(t, client)
	if err := store.WaitSynced(t.Context(), model.ServiceCIDRKind); err != nil {
		t.Fatal(err)
	}
}
