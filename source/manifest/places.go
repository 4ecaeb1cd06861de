package manifest

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"wayleave.dev/model"
)

// places holds what a cluster assigns to objects and files leave out: namespaces, and addresses of pods.
type places struct {
	namespaces map[string]bool
	used       map[string]bool // addresses of pods
	next4      netip.Addr
	next6      netip.Addr
}

func newPlaces(store *model.Store) *places {
	p := &places{namespaces: map[string]bool{}, used: map[string]bool{}, next4: netip.MustParseAddr("10.254.254.1"),
		next6: netip.MustParseAddr("fd00:254::1")}
	for pod := range store.Snapshot().Pods() {
		for _, a := range pod.IPs {
			p.used[a.String()] = true
		}
	}
	return p
}

// give assigns a private address of each family, from ranges that clusters rarely use, to a pod that has none and is
// running or will run.
func (p *places) give(pod *corev1.Pod) {
	for _, ip := range pod.Status.PodIPs {
		p.used[ip.IP] = true
	}
	if len(pod.Status.PodIPs) == 0 && !pod.Spec.HostNetwork {
		pod.Status.PodIPs = []corev1.PodIP{{IP: p.free(&p.next4)}, {IP: p.free(&p.next6)}}
	}
}

func (p *places) free(next *netip.Addr) string {
	for p.used[next.String()] {
		*next = next.Next()
	}
	p.used[next.String()] = true
	return next.String()
}

// make adds the namespaces that objects use and no file defines.
func (p *places) make(w *model.Writer) {
	for _, n := range w.Names(model.NamespaceKind) {
		delete(p.namespaces, n.Name)
	}
	for ns := range p.namespaces {
		w.PutNamespace(&model.Namespace{Name: ns, Labels: map[string]string{corev1.LabelMetadataName: ns}})
	}
}
