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

// Problems keeps the present problems of objects, by the component that found them, and writes Events about them.
// Safe for concurrent use.
type Problems struct {
	// UID returns the UID of an object of a kind of ours, for Events about it; nil if there are none.
	UID func(kind, name string) string

	mu    sync.Mutex
	by    map[string][]model.Problem // finder + object → problems
	queue []waiting                  // in order of time
	wake  chan struct{}
	seen  map[model.Problem]time.Time
	// count is the number of problems of an object reported since swept.
	count map[object]int
	swept time.Time // when old entries of seen were removed
	grace time.Duration
	log   *slog.Logger
}

// object is the subject of Events.
type object struct {
	kind string
	name model.Name
}

// waiting is a problem whose Event is written if it still exists then.
type waiting struct {
	at   string // key of Problems.by
	q    model.Problem
	then time.Time
}

const (
	// repeatAfter is the minimum interval between Events about one problem.
	repeatAfter = time.Hour
	// grace is how long a problem must last before it is reported: objects that are applied together can arrive in
	// any order.
	grace = 2 * time.Second
	// mostWaiting bounds the problems that wait. In a flood, List still returns all of them.
	mostWaiting = 1024
	// mostOfObject bounds the different problems of one object that are reported in repeatAfter: a tenant or a
	// captured node may choose the text of a problem.
	mostOfObject = 64
)

// NewProblems returns an empty set.
func NewProblems(log *slog.Logger) *Problems {
	return &Problems{by: map[string][]model.Problem{}, wake: make(chan struct{}, 1),
		seen: map[model.Problem]time.Time{}, count: map[object]int{}, grace: grace, log: log}
}

// Set replaces the problems that a finder (a source or feature) reports for one of its keys; none means that there is
// no problem.
func (p *Problems) Set(finder, key string, problems []model.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := finder + " " + key
	old := p.by[at]
	if len(problems) == 0 {
		if _, had := p.by[at]; had {
			delete(p.by, at)
			p.poke()
		}
		return
	}
	if !slices.Equal(old, problems) {
		p.poke()
	}
	p.by[at] = slices.Clone(problems)
	now := time.Now()
	if now.Sub(p.swept) >= repeatAfter {
		p.swept = now
		clear(p.count)
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

// Clear removes all problems of a finder.
func (p *Problems) Clear(finder string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.by, func(at string, _ []model.Problem) bool { return strings.HasPrefix(at, finder+" ") })
	p.poke()
}

func (p *Problems) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Problems) said(q model.Problem, now time.Time) bool {
	t, ok := p.seen[q]
	return ok && now.Sub(t) < repeatAfter
}

func (p *Problems) enqueue(w waiting) {
	if len(p.queue) >= mostWaiting || slices.ContainsFunc(p.queue, func(v waiting) bool {
		return v.at == w.at &&
			v.q == w.q
	}) {
		return
	}
	p.queue = append(p.queue, w)
	p.poke()
}

// next returns the problem that is due, or the time of the next call; the zero time means after the next change.
func (p *Problems) next(now time.Time) (q model.Problem, ok bool, then time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 {
		w := p.queue[0]
		if now.Before(w.then) {
			return q, false, w.then
		}
		p.queue = p.queue[1:]
		if !slices.Contains(p.by[w.at], w.q) || p.said(w.q, now) {
			continue // resolved, or another finder reported the same
		}
		of := object{w.q.Kind, w.q.Object}
		if p.count[of] >= mostOfObject {
			continue
		}
		p.count[of]++
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

// Run writes Events until ctx ends, while elected() is true: every replica of the writer finds the same problems, and
// one reports them. instance names this replica.
func (p *Problems) Run(ctx context.Context, client kubernetes.Interface, instance string, elected func() bool) {
	for ctx.Err() == nil {
		q, ok, then := p.next(time.Now())
		if ok {
			p.warn(q)
			if !elected() {
				continue
			}
			if err := p.write(ctx, client, instance, q); err != nil {
				p.log.Warn("cannot write an Event", "about", q.Error(), "err", err)
			}
			continue
		}
		p.idle(ctx, then)
	}
}

// Tell reports the problems that mine selects to the writer until ctx ends, for an agent, which cannot write Events.
// publish gets all of them whenever they change, sorted, and is retried with back-off until it succeeds.
func (p *Problems) Tell(ctx context.Context, mine func(model.Problem) bool, publish func(context.Context,
	[]model.Problem) error) {
	var last []model.Problem
	told, wait := false, time.Duration(0)
	for ctx.Err() == nil {
		q, ok, then := p.next(time.Now())
		if ok {
			p.warn(q)
			continue
		}
		if list := p.standing(mine); !told || !slices.Equal(list, last) {
			if err := publish(ctx, list); err != nil {
				wait = min(max(2*wait, time.Second), 30*time.Second)
				p.log.Warn("cannot report the problems of this node", "err", err, "retry", wait)
				if again := time.Now().Add(wait); then.IsZero() || again.Before(then) {
					then = again
				}
				p.idle(ctx, then)
				continue
			}
			last, told, wait = list, true, 0
		}
		p.idle(ctx, then)
	}
}

// standing returns the problems that mine selects and that have lasted, sorted.
func (p *Problems) standing(mine func(model.Problem) bool) []model.Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []model.Problem
	for at, list := range p.by {
		for _, q := range list {
			if mine(q) && !slices.ContainsFunc(p.queue, func(w waiting) bool { return w.at == at && w.q == q }) {
				all = append(all, q)
			}
		}
	}
	slices.SortFunc(all, func(a, b model.Problem) int { return strings.Compare(a.Error(), b.Error()) })
	return slices.Compact(all)
}

// idle waits for a change, or until then if it is not zero.
func (p *Problems) idle(ctx context.Context, then time.Time) {
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

func (p *Problems) warn(q model.Problem) {
	p.log.Warn("bad object", "kind", q.Kind, "object", q.Object.String(), "field", q.Field, "reason", q.Reason)
}

// Again forgets what was reported, so that a newly elected writer reports all present problems.
func (p *Problems) Again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.seen)
	clear(p.count)
	then := time.Now().Add(p.grace)
	for _, at := range slices.Sorted(maps.Keys(p.by)) {
		for _, q := range p.by[at] {
			p.enqueue(waiting{at, q, then})
		}
	}
}

// write writes an Event, or increments the count of an equal one.
func (p *Problems) write(ctx context.Context, client kubernetes.Interface, instance string, q model.Problem) error {
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
		Source:              corev1.EventSource{Component: "wayleave", Host: hostOf(q, instance)},
		ReportingController: "wayleave.dev/writer", ReportingInstance: instance,
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

// hostOf returns where a problem was found: its node, otherwise the writer.
func hostOf(q model.Problem, instance string) string {
	if q.Kind == "Node" {
		return q.Object.Name
	}
	return instance
}

// eventName is equal for equal problems of one object, whoever reports them, so that a new writer continues the
// count. Names of objects may be as long as those of Events.
func eventName(ref corev1.ObjectReference, parts ...string) string {
	h := sha256.New()
	for _, s := range append([]string{ref.Kind, string(ref.UID)}, parts...) {
		fmt.Fprintf(h, "%d %s", len(s), s)
	}
	return fmt.Sprintf("%s.%x", strings.TrimRight(ref.Name[:min(len(ref.Name), 200)], ".-"), h.Sum(nil)[:8])
}

// uidOf returns the UID of an object that was read.
func uidOf(o metav1.Object, err error) (types.UID, error) {
	if err != nil {
		return "", err
	}
	return o.GetUID(), nil
}

// reference reads the object's UID, by which `kubectl describe` finds Events. The model does not keep UIDs: problems
// are rare, objects are many.
func (p *Problems) reference(ctx context.Context, client kubernetes.Interface, q model.Problem) (
	corev1.ObjectReference, error) {
	ref := corev1.ObjectReference{Kind: q.Kind, Namespace: q.Object.Namespace, Name: q.Object.Name, APIVersion: "v1"}
	var uid types.UID
	var err error
	get := metav1.GetOptions{}
	switch q.Kind {
	case "Service":
		uid, err = uidOf(client.CoreV1().Services(ref.Namespace).Get(ctx, ref.Name, get))
	case "EndpointSlice":
		ref.APIVersion = "discovery.k8s.io/v1"
		uid, err = uidOf(client.DiscoveryV1().EndpointSlices(ref.Namespace).Get(ctx, ref.Name, get))
	case "Pod":
		uid, err = uidOf(client.CoreV1().Pods(ref.Namespace).Get(ctx, ref.Name, get))
	case "NetworkPolicy":
		ref.APIVersion = "networking.k8s.io/v1"
		uid, err = uidOf(client.NetworkingV1().NetworkPolicies(ref.Namespace).Get(ctx, ref.Name, get))
	case "Ingress":
		ref.APIVersion = "networking.k8s.io/v1"
		uid, err = uidOf(client.NetworkingV1().Ingresses(ref.Namespace).Get(ctx, ref.Name, get))
	case "IngressClass":
		ref.APIVersion = "networking.k8s.io/v1"
		uid, err = uidOf(client.NetworkingV1().IngressClasses().Get(ctx, ref.Name, get))
	case api.AddressPoolKind, api.BGPPeerKind, api.BGPConfigurationKind, api.BGPAdvertisementKind:
		ref.APIVersion = api.GroupVersion
		if p.UID != nil {
			uid = types.UID(p.UID(q.Kind, ref.Name))
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
