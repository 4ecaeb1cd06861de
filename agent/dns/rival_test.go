package dns

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/model"
	kubesource "wayleave.dev/source/kubernetes"
)

var dnsAddress = netip.MustParseAddr("10.96.0.10")

func coreDNSService(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns",
		Labels: map[string]string{"k8s-app": "kube-dns"}},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.10", Selector: map[string]string{"k8s-app": "kube-dns"}}}
	if change != nil {
		change(s)
	}
	return s
}

func coreDNSPod(phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns-1",
		Labels: map[string]string{"k8s-app": "kube-dns"}}, Status: corev1.PodStatus{Phase: phase}}
}

func newKeeper(t *testing.T, takeOver bool, objects ...runtime.Object) (*keeper, *fake.Clientset, *time.Time) {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	store.MarkSynced(model.AllKinds())
	cfg := config.Default()
	cfg.DNS.TakeOver = takeOver
	cfg.ClusterDNS = append(cfg.ClusterDNS, dnsAddress)
	c := fake.NewClientset(append(objects, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default",
		Name: "kubernetes"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}})...)
	w := agent.NewCluster(agent.NewCore(slog.New(slog.DiscardHandler), store, cfg, nil), "writer-1")
	w.Client = &kubesource.Client{Interface: c}
	now := time.Now()
	return &keeper{c: w, now: func() time.Time { return now }}, c, &now
}

func ours(t *testing.T, c *fake.Clientset) bool {
	t.Helper()
	svc, err := c.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})
	return err == nil && svc.Spec.Selector["app.kubernetes.io/name"] == "wayleave"
}

func TestARunningDNSServerIsLeftAlone(t *testing.T) {
	endpoints := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns-1",
		Labels: map[string]string{discoveryv1.LabelServiceName: "kube-dns"}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.53"}}}}
	const never = time.Hour
	for _, tc := range []struct {
		name     string
		takeOver bool
		objects  []runtime.Object
		// after is when the Service is Wayleave's.
		after time.Duration
	}{
		{"no Service", false, nil, 0},
		{"CoreDNS", false, []runtime.Object{coreDNSService(nil), coreDNSPod(corev1.PodRunning)}, never},
		{"CoreDNS waits for a network", false,
			[]runtime.Object{coreDNSService(nil), coreDNSPod(corev1.PodPending)}, never},
		{"a server outside", false, []runtime.Object{coreDNSService(func(s *corev1.Service) { s.Spec.Selector = nil }),
			endpoints}, never},
		{"CoreDNS is gone", false, []runtime.Object{coreDNSService(nil)}, unusedFor},
		{"CoreDNS has ended", false, []runtime.Object{coreDNSService(nil), coreDNSPod(corev1.PodFailed)}, unusedFor},
		{"the setting", true, []runtime.Object{coreDNSService(nil), coreDNSPod(corev1.PodRunning)}, 0},
		// An installation of an earlier version, over which CoreDNS's manifest has been applied again.
		{"created by Wayleave", false, []runtime.Object{coreDNSService(func(s *corev1.Service) {
			s.Labels["app.kubernetes.io/managed-by"] = "wayleave"
		}), coreDNSPod(corev1.PodRunning)}, 0},
		{"taken over by Wayleave", false, []runtime.Object{coreDNSService(func(s *corev1.Service) {
			s.Annotations = map[string]string{"wayleave.dev/previous-spec": "{}"}
		}), coreDNSPod(corev1.PodRunning)}, 0},
		{"Wayleave's selector", false, []runtime.Object{coreDNSService(func(s *corev1.Service) {
			s.Spec.Selector = map[string]string{"app.kubernetes.io/name": "wayleave"}
		}), coreDNSPod(corev1.PodRunning)}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k, c, now := newKeeper(t, tc.takeOver, tc.objects...)
			for start := *now; now.Sub(start) < 2*time.Minute; *now = now.Add(unusedEvery) {
				if _, err := k.ensure(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got, want := ours(t, c), now.Sub(start) >= tc.after; got != want {
					t.Fatalf("after %s: the Service is Wayleave's: %v, want %v", now.Sub(start), got, want)
				}
			}
			said := k.c.Problems.List()
			if left := tc.after == never; left != (len(said) > 0) {
				t.Errorf("it is said: %v", said)
			} else if left && (!strings.Contains(said[0].Reason, "dns.takeOver") || !said[0].Note) {
				t.Errorf("it is said: %+v", said[0])
			}
		})
	}
}

// A rollout of the other server has no pods for a moment.
func TestAPauseOfTheOtherServerIsNoInvitation(t *testing.T) {
	k, c, now := newKeeper(t, false, coreDNSService(nil))
	pods := c.CoreV1().Pods("kube-system")
	for range 5 {
		for range 2 {
			if _, err := k.ensure(t.Context()); err != nil || ours(t, c) {
				t.Fatalf("taken over, %v", err)
			}
			*now = now.Add(unusedEvery)
		}
		if _, err := pods.Create(t.Context(), coreDNSPod(corev1.PodRunning), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := k.ensure(t.Context()); err != nil || ours(t, c) {
			t.Fatalf("taken over, %v", err)
		}
		if err := pods.Delete(t.Context(), "coredns-1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// RKE2's CoreDNS has the address of the cluster DNS under another name.
func TestTheServiceWithTheAddressIsNamed(t *testing.T) {
	k, c, _ := newKeeper(t, true)
	err := k.c.Store.Write(func(w *model.Writer) {
		w.PutService(&model.Service{Name: model.Name{Namespace: "kube-system", Name: "rke2-coredns-rke2-coredns"},
			ClusterIPs: k.c.Config.ClusterDNS})
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "rke2-coredns-rke2-coredns") {
		t.Errorf("error is %v", err)
	}
	if ours(t, c) {
		t.Error("kube-dns was created")
	}
}
