package writeback

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"wayleave.dev/api"
	"wayleave.dev/model"
)

// Problems keeps what is wrong with objects now, by who found it, and makes
// Events of it. Safe for concurrent use.
type Problems struct {
	mu    sync.Mutex
	by    map[string][]model.Problem // finder + object → problems
	queue chan model.Problem
	seen  map[model.Problem]time.Time
	log   *slog.Logger
	// PoolUID finds the UID of an AddressPool, for Events about it; nil when there are none.
	PoolUID func(name string) string
}

// Events of one problem are repeated at most that often.
const repeatAfter = time.Hour

// NewProblems makes an empty book of problems.
func NewProblems(log *slog.Logger) *Problems {
	return &Problems{by: map[string][]model.Problem{}, queue: make(chan model.Problem, 1024), seen: map[model.Problem]time.Time{}, log: log}
}

// Set replaces what the finder (a source or feature) has to say of one of its
// keys; none means that all is well.
func (p *Problems) Set(finder, key string, problems []model.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := finder + " " + key
	old := p.by[at]
	if len(problems) == 0 {
		delete(p.by, at)
		return
	}
	p.by[at] = slices.Clone(problems)
	for _, q := range problems {
		if slices.Contains(old, q) || time.Since(p.seen[q]) < repeatAfter {
			continue
		}
		p.seen[q] = time.Now()
		p.log.Warn("bad object", "kind", q.Kind, "object", q.Object.String(), "field", q.Field, "reason", q.Reason)
		select {
		case p.queue <- q:
		default: // a flood; all of them stay visible in List
		}
	}
}

// List returns all present problems in a stable order.
func (p *Problems) List() []model.Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []model.Problem
	for _, list := range p.by {
		all = append(all, list...)
	}
	slices.SortFunc(all, func(a, b model.Problem) int { return strings.Compare(a.Error(), b.Error()) })
	return slices.Compact(all)
}

// Run writes Events until ctx ends. Those on cluster-wide objects are written
// only while elected() is true: every agent finds the same, one says it. node is
// the one whose problems this agent writes about in any case.
func (p *Problems) Run(ctx context.Context, client kubernetes.Interface, node string, elected func() bool) {
	for {
		select {
		case <-ctx.Done():
			return
		case q := <-p.queue:
			p.say(ctx, client, node, q, elected())
		}
	}
}

// Flush writes the Events about the node that wait, for an agent that is about to end.
func (p *Problems) Flush(ctx context.Context, client kubernetes.Interface, node string) {
	for {
		select {
		case q := <-p.queue:
			p.say(ctx, client, node, q, false)
		default:
			return
		}
	}
}

// say writes an Event, if it is for this agent to write.
func (p *Problems) say(ctx context.Context, client kubernetes.Interface, node string, q model.Problem, elected bool) {
	if !elected && (q.Kind != "Node" || q.Object.Name != node) {
		return
	}
	if err := p.write(ctx, client, node, q); err != nil {
		p.log.Warn("could not write an Event", "about", q.Error(), "err", err)
	}
}

// Again forgets what was said, so that a newly elected writer says all that is
// wrong now.
func (p *Problems) Again() {
	all := p.List()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range all {
		select {
		case p.queue <- q:
		default:
		}
	}
}

func (p *Problems) write(ctx context.Context, client kubernetes.Interface, node string, q model.Problem) error {
	ref, err := p.reference(ctx, client, q)
	if err != nil {
		return err
	}
	namespace := ref.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	now := metav1.Now()
	kind, reason := corev1.EventTypeWarning, "Invalid"
	if q.Note {
		kind, reason = corev1.EventTypeNormal, "NoEffect"
	}
	if q.Event != "" {
		reason = q.Event
	}
	message := q.Reason
	if q.Field != "" {
		message = q.Field + ": " + q.Reason
	}
	_, err = client.CoreV1().Events(namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.%x", q.Object.Name, now.UnixNano())},
		InvolvedObject: ref, Type: kind, Reason: reason, Message: message,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source:              corev1.EventSource{Component: "wayleave", Host: node},
		ReportingController: "wayleave.dev/agent", ReportingInstance: node,
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create event: %w", err)
	}
	return nil
}

// reference asks for the object's UID, by which `kubectl describe` finds Events.
// The model does not keep UIDs: problems are rare, objects are many.
func (p *Problems) reference(ctx context.Context, client kubernetes.Interface, q model.Problem) (corev1.ObjectReference, error) {
	ref := corev1.ObjectReference{Kind: q.Kind, Namespace: q.Object.Namespace, Name: q.Object.Name, APIVersion: "v1"}
	var uid types.UID
	var err error
	get := metav1.GetOptions{}
	switch q.Kind {
	case "Service":
		o, e := client.CoreV1().Services(ref.Namespace).Get(ctx, ref.Name, get)
		uid, err = o.GetUID(), e
	case "EndpointSlice":
		ref.APIVersion = "discovery.k8s.io/v1"
		o, e := client.DiscoveryV1().EndpointSlices(ref.Namespace).Get(ctx, ref.Name, get)
		uid, err = o.GetUID(), e
	case "Pod":
		o, e := client.CoreV1().Pods(ref.Namespace).Get(ctx, ref.Name, get)
		uid, err = o.GetUID(), e
	case "NetworkPolicy":
		ref.APIVersion = "networking.k8s.io/v1"
		o, e := client.NetworkingV1().NetworkPolicies(ref.Namespace).Get(ctx, ref.Name, get)
		uid, err = o.GetUID(), e
	case "Ingress":
		ref.APIVersion = "networking.k8s.io/v1"
		o, e := client.NetworkingV1().Ingresses(ref.Namespace).Get(ctx, ref.Name, get)
		uid, err = o.GetUID(), e
	case "IngressClass":
		ref.APIVersion = "networking.k8s.io/v1"
		o, e := client.NetworkingV1().IngressClasses().Get(ctx, ref.Name, get)
		uid, err = o.GetUID(), e
	case api.AddressPoolKind:
		ref.APIVersion = api.GroupVersion
		if p.PoolUID != nil {
			uid = types.UID(p.PoolUID(ref.Name))
		}
	case "Node":
		uid = types.UID(ref.Name) // as the kubelet does
	default:
		return ref, fmt.Errorf("no Events are written about a %s", q.Kind)
	}
	if err != nil {
		return ref, fmt.Errorf("%s %s: %w", q.Kind, q.Object, err)
	}
	ref.UID = uid
	return ref, nil
}
