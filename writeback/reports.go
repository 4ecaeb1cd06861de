package writeback

import (
	"context"
	"log/slog"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"wayleave.dev/model"
)

// reportEvery is the minimum interval at which the reports of nodes are read.
const reportEvery = time.Second

// NodeReports reads the reports of agents in their nodes' Leases. Set the fields, then call Run once; the other
// methods are safe for concurrent use.
type NodeReports struct {
	Client kubernetes.Interface
	// Namespace is PeersNamespace.
	Namespace string
	// Problems gets the problems that a node reports, of the node itself and of Ingresses. Accept decides about those
	// of Ingresses.
	Problems func(node string, problems []model.Problem)
	Accept   func(node string, q model.Problem) bool
	Log      *slog.Logger

	mu     sync.Mutex
	dns    KubeletDNS
	known  bool // a node has reported dns
	synced bool // that all Leases have been read once
}

// Run follows the Leases until ctx ends, and returns its error.
func (r *NodeReports) Run(ctx context.Context) error {
	w := watchLeases(ctx, r.Client, r.Namespace, metav1.ListOptions{})
	last := map[string]string{}
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if !w.synced() {
			continue
		}
		select {
		case <-w.changed:
			r.read(w.all(), last)
		default:
		}
		r.mu.Lock()
		r.synced = true
		r.mu.Unlock()
	}
}

// read passes on the reports that changed since the last call.
func (r *NodeReports) read(leases []*coordinationv1.Lease, last map[string]string) {
	there := map[string]bool{}
	for _, l := range leases {
		node, problems, ok := ReadReport(l)
		if !ok {
			continue
		}
		there[node] = true
		if raw, told := last[node]; told && raw == l.Annotations[problemsAnnotation] {
			continue
		}
		last[node] = l.Annotations[problemsAnnotation]
		good := problems[:0]
		for _, q := range problems {
			if q.Kind == "Node" || r.Accept != nil && r.Accept(node, q) {
				good = append(good, q)
			}
		}
		r.Problems(node, good)
	}
	for node := range last {
		if !there[node] {
			delete(last, node)
			r.Problems(node, nil)
		}
	}
	dns, known := AgreedDNS(leases)
	r.mu.Lock()
	r.dns, r.known = dns, known
	r.mu.Unlock()
}

// DNS returns what most nodes report of their kubelets. known is false while no node has reported; synced means that
// all Leases have been read.
func (r *NodeReports) DNS() (dns KubeletDNS, known, synced bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dns, r.known, r.synced
}
