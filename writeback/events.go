package writeback

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"wayleave.dev/api"
	"wayleave.dev/model"
)

// Problems keeps what is wrong with objects now, by who found it, and makes
// Events of it. Safe for concurrent use.
type Problems struct {
	// PoolUID finds the UID of an AddressPool, for Events about it; nil when there are none.
	PoolUID func(name string) string

	mu    sync.Mutex
	by    map[string][]model.Problem // finder + object → problems
	queue []waiting                  // in order of time
	wake  chan struct{}
	seen  map[model.Problem]time.Time
	swept time.Time // when old entries of seen were removed
	grace time.Duration
	log   *slog.Logger
}

// waiting is a problem of which an Event is written, if it is still one then.
type waiting struct {
	at   string // key of Problems.by
	q    model.Problem
	then time.Time
}

const (
	// repeatAfter is how often an Event of one problem is repeated at most.
	repeatAfter = time.Hour
	// grace is how long a problem lasts before it is said: objects that are applied
	// together may come in any order.
	grace = 2 * time.Second
	// mostWaiting is how many problems wait at most. In a flood, all of them stay visible
	// in List.
	mostWaiting = 1024
)

// NewProblems makes an empty book of problems.
func NewProblems(log *slog.Logger) *Problems {
	return &Problems{by: map[string][]model.Problem{}, wake: make(chan struct{}, 1), seen: map[model.Problem]time.Time{}, grace: grace, log: log}
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
	now := time.Now()
	if now.Sub(p.swept) >= repeatAfter {
		p.swept = now
		maps.DeleteFunc(p.seen, func(_ model.Problem, t time.Time) bool { return now.Sub(t) >= repeatAfter })
	}
	for _, q := range problems {
		if slices.Contains(old, q) {
			continue
		}
		if !p.said(q, now) {
			p.enqueue(waiting{at, q, now.Add(p.grace)})
		}
	}
}

func (p *Problems) said(q model.Problem, now time.Time) bool {
	t, ok := p.seen[q]
	return ok && now.Sub(t) < repeatAfter
}

func (p *Problems) enqueue(w waiting) {
	if len(p.queue) >= mostWaiting || slices.ContainsFunc(p.queue, func(v waiting) bool { return v.at == w.at && v.q == w.q }) {
		return
	}
	p.queue = append(p.queue, w)
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// next takes the problem that is to be said now, or says when to ask again; the zero time
// for when something comes. With all it is one that waits.
func (p *Problems) next(now time.Time, all bool) (q model.Problem, ok bool, then time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 {
		w := p.queue[0]
		if !all && now.Before(w.then) {
			return q, false, w.then
		}
		p.queue = p.queue[1:]
		if !slices.Contains(p.by[w.at], w.q) || p.said(w.q, now) {
			continue // it has been mended, or another finder said the same
		}
		p.seen[w.q] = now
		return w.q, true, then
	}
	return q, false, then
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
	for ctx.Err() == nil {
		q, ok, then := p.next(time.Now(), false)
		if ok {
			p.say(ctx, client, node, q, elected())
			continue
		}
		var due <-chan time.Time
		if !then.IsZero() {
			due = time.After(time.Until(then))
		}
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-due:
		}
	}
}

// Flush writes the Events about the node that wait, for an agent that is about to end.
func (p *Problems) Flush(ctx context.Context, client kubernetes.Interface, node string) {
	for {
		q, ok, _ := p.next(time.Now(), true)
		if !ok {
			return
		}
		p.say(ctx, client, node, q, false)
	}
}

// say writes an Event, if it is for this agent to write.
func (p *Problems) say(ctx context.Context, client kubernetes.Interface, node string, q model.Problem, elected bool) {
	p.log.Warn("bad object", "kind", q.Kind, "object", q.Object.String(), "field", q.Field, "reason", q.Reason)
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
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.seen)
	then := time.Now().Add(p.grace)
	for _, at := range slices.Sorted(maps.Keys(p.by)) {
		for _, q := range p.by[at] {
			p.enqueue(waiting{at, q, then})
		}
	}
}

// write writes an Event, or counts the one that says the same.
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
	events := client.CoreV1().Events(namespace)
	e := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: eventName(ref, kind, reason, message)},
		InvolvedObject: ref, Type: kind, Reason: reason, Message: message,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source:              corev1.EventSource{Component: "wayleave", Host: node},
		ReportingController: "wayleave.dev/agent", ReportingInstance: node,
	}
	_, err = events.Create(ctx, e, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		old, err := events.Get(ctx, e.Name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("read event: %w", err)
		}
		patch, err := json.Marshal(map[string]any{"count": old.Count + 1, "lastTimestamp": now})
		if err != nil {
			return fmt.Errorf("event: %w", err)
		}
		if _, err := events.Patch(ctx, e.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("count event: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("create event: %w", err)
	}
	return nil
}

// eventName is the same for what says the same of one object, whoever says it: a new
// writer counts on. Names of objects may be as long as those of Events.
func eventName(ref corev1.ObjectReference, parts ...string) string {
	h := sha256.New()
	for _, s := range append([]string{ref.Kind, string(ref.UID)}, parts...) {
		fmt.Fprintf(h, "%d %s", len(s), s)
	}
	return fmt.Sprintf("%s.%x", strings.TrimRight(ref.Name[:min(len(ref.Name), 200)], ".-"), h.Sum(nil)[:8])
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
