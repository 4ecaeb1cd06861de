package dns

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/writeback"
)

// Nothing of a node is mounted into the writer: it makes kube-dns at the address that
// kubelets give to pods, once an agent has reported it.
func TestKubeDNSIsMadeWhereKubeletsSay(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	w := agent.NewCluster(agent.NewCore(slog.New(slog.DiscardHandler), store, config.Default(), nil), "writer-1")
	c := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}})
	w.Client = &kubesource.Client{Interface: c}
	w.Reports.Client, w.Reports.Namespace = c, writeback.PeersNamespace
	store.MarkSynced(model.AllKinds())
	k := &keeper{c: w, now: time.Now}
	if _, err := k.ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "clusterDNS") {
		t.Fatalf("before a report: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Reports.Run(ctx) }()
	defer func() { cancel(); <-done }()
	lease := writeback.NodeLease{Client: c, Namespace: writeback.PeersNamespace, Node: "node1"}
	if err := lease.Kubelet(t.Context(),
		writeback.KubeletDNS{VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.53")}}); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 20*time.Second, func() error {
		_, err := k.ensure(t.Context())
		return err
	})
	svc, err := c.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil || svc.Spec.ClusterIP != "10.96.0.53" {
		t.Errorf("kube-dns is at %s, %v", svc.Spec.ClusterIP, err)
	}
}
