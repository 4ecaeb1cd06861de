package writeback

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"wayleave.dev/model"
)

// PeersNamespace is the namespace of the nodes' Leases. It contains no other Leases, so the right to write Leases there
// permits nothing else. Its Secrets are passwords of BGP sessions.
const PeersNamespace = model.PeersNamespace

// Annotations by which a node's agent reports to the writer.
const (
	// problemsAnnotation is a JSON list of reported problems.
	problemsAnnotation = "wayleave.dev/problems"
	// kubeletAnnotation is the DNS configuration that the node's kubelet gives to pods, see KubeletDNS.
	kubeletAnnotation = "wayleave.dev/kubelet"
)

// Bounds of the report of one node. A captured node can write any text into its own Lease.
const (
	maxReported   = 32
	maxReportText = 512
)

const leasePrefix = "wayleave-node-"

// leaseOf returns the name of a node's Lease. The ValidatingAdmissionPolicy wayleave-agent uses the same scheme.
func leaseOf(node string) string { return leasePrefix + node }

// nodeOf returns the node of a Lease, false for other Leases.
func nodeOf(lease string) (string, bool) { return strings.CutPrefix(lease, leasePrefix) }

// NodeLease is the one object that a node's agent writes: the Lease of its node. Annotations
// carry the node's public key, its problems and the kubelet's DNS settings. Safe for
// concurrent use.
type NodeLease struct {
	Client kubernetes.Interface
	// Namespace is PeersNamespace.
	Namespace string
	Node      string
}

// Set merges labels and annotations into the Lease, creates it if it does not exist, and returns it. It writes only a
// difference, and retries a conflict with another writer of the Lease. The Lease is
// deleted with the Node.
func (l NodeLease) Set(ctx context.Context, labels, annotations map[string]string) (*coordinationv1.Lease, error) {
	leases := l.Client.CoordinationV1().Leases(l.Namespace)
	var last error
	for range 5 {
		have, err := leases.Get(ctx, leaseOf(l.Node), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			made, err := l.create(ctx, labels, annotations)
			if apierrors.IsAlreadyExists(err) {
				last = err
				continue
			}
			return made, err
		}
		if err != nil {
			return nil, fmt.Errorf("lease %s: %w", leaseOf(l.Node), err)
		}
		next := have.DeepCopy()
		next.Labels, next.Annotations = merged(next.Labels, labels), merged(next.Annotations, annotations)
		if maps.Equal(next.Labels, have.Labels) && maps.Equal(next.Annotations, have.Annotations) {
			return have, nil
		}
		written, err := leases.Update(ctx, next, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			last = err
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("lease %s: %w", leaseOf(l.Node), err)
		}
		return written, nil
	}
	return nil, fmt.Errorf("lease %s: %w", leaseOf(l.Node), last)
}

func (l NodeLease) create(ctx context.Context, labels, annotations map[string]string) (*coordinationv1.Lease, error) {
	node, err := l.Client.CoreV1().Nodes().Get(ctx, l.Node, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", l.Node, err)
	}
	return l.Client.CoordinationV1().Leases(l.Namespace).Create(ctx,
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
			Name: leaseOf(l.Node), Annotations: annotations,
			Labels:          merged(map[string]string{"app.kubernetes.io/managed-by": "wayleave"}, labels),
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
		}, Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(l.Node)}}, metav1.CreateOptions{})
}

// merged returns base with the entries of more; neither is changed.
func merged(base, more map[string]string) map[string]string {
	out := maps.Clone(base)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, more)
	return out
}

// reported is a problem in the annotation. The object of a problem without a kind is the node of the Lease, whatever
// the node says.
type reported struct {
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Field     string `json:"field,omitempty"`
	Reason    string `json:"reason"`
	Note      bool   `json:"note,omitempty"`
	Event     string `json:"event,omitempty"`
}

const ingressKind = "Ingress"

// Reportable reports whether an agent of the node may report the problem: problems of the node itself, and of fields
// of Ingresses that name Secrets and ConfigMaps, which the writer cannot read.
func Reportable(q model.Problem, node string) bool {
	return q.Kind == "Node" && q.Object.Name == node || q.Kind == ingressKind && NamesObject(q.Field)
}

// NamesObject reports whether a field of an Ingress names a Secret or a ConfigMap.
func NamesObject(field string) bool {
	name, ok := strings.CutPrefix(field, "metadata.annotations[nginx.ingress.kubernetes.io/")
	if !ok {
		return strings.HasPrefix(field, "spec.tls[")
	}
	switch strings.TrimSuffix(name, "]") {
	case "auth-secret", "auth-tls-secret", "proxy-ssl-secret", "custom-headers", "auth-proxy-set-headers":
		return true
	}
	return false
}

// Report writes problems into the Lease: at most 32 that are Reportable, each text cut to 512 bytes. An empty list
// removes earlier ones.
func (l NodeLease) Report(ctx context.Context, problems []model.Problem) error {
	list := []reported{}
	for _, q := range problems {
		if !Reportable(q, l.Node) || len(list) == maxReported {
			continue
		}
		r := reported{Field: short(q.Field), Reason: short(q.Reason), Note: q.Note, Event: q.Event}
		if q.Kind == ingressKind {
			r.Kind, r.Namespace, r.Name = q.Kind, q.Object.Namespace, q.Object.Name
		}
		list = append(list, r)
	}
	raw, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("lease %s: %w", leaseOf(l.Node), err)
	}
	_, err = l.Set(ctx, nil, map[string]string{problemsAnnotation: string(raw)})
	return err
}

func short(s string) string {
	if len(s) > maxReportText {
		return strings.ToValidUTF8(s[:maxReportText], "")
	}
	return s
}

// KubeletDNS is the DNS server and domain that a kubelet gives to pods; empty if its configuration does not contain
// them.
type KubeletDNS struct {
	VIPs   []netip.Addr `json:"clusterDNS,omitempty"`
	Domain string       `json:"clusterDomain,omitempty"`
}

// Kubelet reports the DNS configuration of the node's kubelet.
func (l NodeLease) Kubelet(ctx context.Context, k KubeletDNS) error {
	raw, err := json.Marshal(k)
	if err != nil {
		return fmt.Errorf("lease %s: %w", leaseOf(l.Node), err)
	}
	_, err = l.Set(ctx, nil, map[string]string{kubeletAnnotation: string(raw)})
	return err
}

// ReadReport returns the problems that a node may report, within the bounds of NodeLease.Report. The rest is dropped:
// a captured node can report only about itself. ok is false for a Lease that is not a node's.
func ReadReport(l *coordinationv1.Lease) (node string, problems []model.Problem, ok bool) {
	node, ok = nodeOf(l.Name)
	if !ok {
		return "", nil, false
	}
	var list []reported
	if err := json.Unmarshal([]byte(l.Annotations[problemsAnnotation]), &list); err != nil {
		return node, nil, true
	}
	for _, r := range list[:min(len(list), maxReported)] {
		q := model.Problem{Kind: "Node", Object: model.Name{Name: node}, Field: short(r.Field), Reason: short(r.Reason),
			Note: r.Note, Event: reasonOf(r.Event)}
		if r.Kind != "" {
			q.Kind, q.Object = r.Kind, model.Name{Namespace: r.Namespace, Name: r.Name}
		}
		if Reportable(q, node) && !slices.Contains(problems, q) {
			problems = append(problems, q)
		}
	}
	return node, problems, true
}

// reasonOf returns the reason of an Event if it is valid: a word of at most 64 letters.
func reasonOf(s string) string {
	letter := func(r rune) bool { return r < 'A' || r > 'Z' && r < 'a' || r > 'z' }
	if len(s) > 64 || strings.ContainsFunc(s, letter) {
		return ""
	}
	return s
}

// AgreedDNS returns what most nodes report of their kubelets; ties go to the first node by name. ok is false while no
// node has reported.
func AgreedDNS(leases []*coordinationv1.Lease) (out KubeletDNS, ok bool) {
	byName := func(a, b *coordinationv1.Lease) int { return strings.Compare(a.Name, b.Name) }
	leases = slices.SortedFunc(slices.Values(leases), byName)
	votes := map[string]int{}
	most := ""
	var order []string
	for _, l := range leases {
		raw := l.Annotations[kubeletAnnotation]
		var k KubeletDNS
		_, isNode := nodeOf(l.Name)
		if !isNode || raw == "" || len(raw) > maxReportText || json.Unmarshal([]byte(raw), &k) != nil {
			continue
		}
		if votes[raw]++; votes[raw] == 1 {
			order = append(order, raw)
		}
	}
	for _, raw := range order {
		if votes[raw] > votes[most] {
			most = raw
		}
	}
	if most == "" || json.Unmarshal([]byte(most), &out) != nil {
		return KubeletDNS{}, false
	}
	return out, true
}
