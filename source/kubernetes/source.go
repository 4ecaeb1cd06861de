// Package kubernetes feeds the model from a Kubernetes API server: one list-and-watch per kind, with objects stripped
// on arrival. Only this package and writeback use client-go.
//
// Invariants:
//   - An object exists once in memory, in the model: the reflectors have no cache.
//   - While the API server is unreachable the model stays as it is.
//   - An object that a new list lacks is deleted from the model in the transaction that brings the new objects.
package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"wayleave.dev/model"
	"wayleave.dev/source"
)

// Source watches an API server.
type Source struct {
	// Client must be able to list and watch the watched kinds.
	Client kubernetes.Interface
	Store  *model.Store
	// Dynamic watches AddressPools; nil if no feature uses them. AddressPoolKind is not synced before the API server
	// knows the kind. BGP watches the kinds of BGP, too, and PeerSecrets the Secrets with passwords of sessions.
	Dynamic          dynamic.Interface
	BGP, PeerSecrets bool
	// NodeName limits pods to those of this node, unless AllPods or Policies is set: policies, verified names of
	// pods, and DNS beside another CNI need all pods.
	NodeName string
	AllPods  bool
	// Policies watches NetworkPolicies, too, and keeps the fields of pods that they use.
	Policies bool
	// Ingresses watches Ingresses and IngressClasses. Secrets watches the Secrets that they name.
	Ingresses bool
	// Report gets the problems of an object whenever it was read; none means that earlier ones are resolved. May be
	// nil.
	Report func(kind string, name model.Name, problems []model.Problem)
	Log    *slog.Logger
	// RelistEvery is the interval at which each kind is listed again; 0 is the default, 30 minutes.
	RelistEvery time.Duration
}

// Run watches until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	core, discovery := s.Client.CoreV1().RESTClient(), s.Client.DiscoveryV1().RESTClient()
	everything := fields.Everything()
	here := fields.OneTermEqualSelector("spec.nodeName", s.NodeName)
	pod := podForNames
	if s.Policies {
		pod = source.Pod
	}
	if s.AllPods || s.Policies {
		here = everything
	}
	reflectors := []*cache.Reflector{
		reflector(s, core, "services", everything, model.ServiceKind, &corev1.Service{}, source.Service,
			(*model.Writer).PutService),
		reflector(s, discovery, "endpointslices", everything, model.EndpointSliceKind, &discoveryv1.EndpointSlice{},
			source.EndpointSlice, (*model.Writer).PutEndpointSlice),
		reflector(s, core, "nodes", everything, model.NodeKind, &corev1.Node{}, source.Node, (*model.Writer).PutNode),
		reflector(s, core, "namespaces", everything, model.NamespaceKind, &corev1.Namespace{}, source.Namespace,
			(*model.Writer).PutNamespace),
		reflector(s, core, "pods", here, model.PodKind, &corev1.Pod{}, pod, (*model.Writer).PutPod),
	}
	if s.Policies {
		networking := s.Client.NetworkingV1().RESTClient()
		reflectors = append(reflectors, reflector(s, networking, "networkpolicies", everything, model.NetworkPolicyKind,
			&networkingv1.NetworkPolicy{}, source.NetworkPolicy, (*model.Writer).PutNetworkPolicy))
	}
	if s.Ingresses {
		networking := s.Client.NetworkingV1().RESTClient()
		reflectors = append(reflectors,
			reflector(s, networking, "ingresses", everything, model.IngressKind, &networkingv1.Ingress{},
				source.Ingress, (*model.Writer).PutIngress),
			reflector(s, networking, "ingressclasses", everything, model.IngressClassKind, &networkingv1.IngressClass{},
				source.IngressClass, (*model.Writer).PutIngressClass))
	}
	var wg sync.WaitGroup
	for _, r := range reflectors {
		wg.Go(func() { s.follow(ctx, r) })
	}
	wg.Go(func() { s.serviceCIDRs(ctx) })
	if s.Dynamic != nil {
		wg.Go(func() { s.pools(ctx) })
	}
	if s.Dynamic != nil && s.BGP {
		wg.Go(func() { s.bgp(ctx) })
	}
	if s.PeerSecrets {
		wg.Go(func() { s.peerSecrets(ctx) })
	}
	wg.Wait()
	return ctx.Err()
}

// relistEvery is the interval at which each kind is listed again, plus up to half of it. Changes that a watch missed
// are known by then.
const relistEvery = 30 * time.Minute

// follow runs a reflector and makes it list again from time to time: a watch that lost an event looks like one
// without events. The list is never older than what was seen, and equal objects change nothing.
func (s *Source) follow(ctx context.Context, r *cache.Reflector) {
	every := s.RelistEvery
	if every == 0 {
		every = relistEvery
	}
	for ctx.Err() == nil {
		round, cancel := context.WithTimeout(ctx, every+rand.N(every/2))
		r.RunWithContext(round)
		cancel()
	}
}

// podForNames keeps the fields of a pod that are used without policies. A pod without an address is dropped.
func podForNames(in *corev1.Pod) (*model.Pod, []model.Problem) {
	if len(in.Status.PodIPs) == 0 {
		return nil, nil
	}
	out, problems := source.Pod(in)
	if out != nil {
		out.UID, out.Created, out.Labels, out.Ports = "", time.Time{}, nil, nil
	}
	return out, problems
}

func reflector[I runtime.Object, O any](
	s *Source, client rest.Interface, resource string, selector fields.Selector, kind model.Kind, example I,
	convert func(I) (*O, []model.Problem), put func(*model.Writer, *O),
) *cache.Reflector {
	lw := cache.NewListWatchFromClient(client, resource, metav1.NamespaceAll, selector)
	sink := &sink[I, O]{source: s, kind: kind, convert: convert, put: put}
	return cache.NewReflectorWithOptions(lw, example, sink, cache.ReflectorOptions{Name: resource})
}

// sink writes the objects of one reflector to the model.
type sink[I runtime.Object, O any] struct {
	source  *Source
	kind    model.Kind
	convert func(I) (*O, []model.Problem)
	put     func(*model.Writer, *O)
}

var _ cache.ReflectorStore = (*sink[*corev1.Service, model.Service])(nil)

// Add sets a new object.
func (k *sink[I, O]) Add(obj any) error { return k.Update(obj) }

// Update sets an object.
func (k *sink[I, O]) Update(obj any) error {
	name, out, err := k.read(obj)
	if err != nil {
		return err
	}
	return k.source.Store.WriteKinds(k.kind, func(w *model.Writer) {
		if out == nil {
			w.Delete(k.kind, name)
			return
		}
		k.put(w, out)
	})
}

// Delete removes an object.
func (k *sink[I, O]) Delete(obj any) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return fmt.Errorf("delete %s: %w", k.kind, err)
	}
	name := model.Name{Namespace: m.GetNamespace(), Name: m.GetName()}
	k.report(name, nil)
	return k.source.Store.WriteKinds(k.kind, func(w *model.Writer) { w.Delete(k.kind, name) })
}

// Replace sets all objects of the kind at once.
func (k *sink[I, O]) Replace(objs []any, _ string) error {
	type item struct {
		name model.Name
		out  *O
	}
	items, keep := make([]item, 0, len(objs)), make(map[model.Name]bool, len(objs))
	for _, obj := range objs {
		name, out, err := k.read(obj)
		if err != nil {
			return err
		}
		items = append(items, item{name, out})
		keep[name] = out != nil
	}
	err := k.source.Store.WriteKinds(k.kind, func(w *model.Writer) {
		for _, old := range w.Names(k.kind) {
			if !keep[old] {
				w.Delete(k.kind, old)
				if _, there := keep[old]; !there {
					k.report(old, nil)
				}
			}
		}
		for _, it := range items {
			if it.out != nil {
				k.put(w, it.out)
			}
		}
	})
	if err != nil {
		return err
	}
	k.source.Store.MarkSynced(k.kind)
	return nil
}

// Resync does nothing: the store keeps no queue.
func (k *sink[I, O]) Resync() error { return nil }

// Transformer drops unused fields while the first list is collected.
func (k *sink[I, O]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if m, err := meta.Accessor(obj); err == nil {
			m.SetManagedFields(nil)
			m.SetAnnotations(usedAnnotations(m.GetAnnotations()))
		}
		return obj, nil
	}
}

// usedAnnotations are the annotations that source reads.
func usedAnnotations(all map[string]string) (used map[string]string) {
	for key, v := range all {
		if source.KeepsAnnotation(key) {
			if used == nil {
				used = map[string]string{}
			}
			used[key] = v
		}
	}
	return used
}

func (k *sink[I, O]) read(obj any) (model.Name, *O, error) {
	in, ok := obj.(I)
	if !ok {
		return model.Name{}, nil, fmt.Errorf("%s: got a %T", k.kind, obj)
	}
	m, err := meta.Accessor(in)
	if err != nil {
		return model.Name{}, nil, fmt.Errorf("%s: %w", k.kind, err)
	}
	name := model.Name{Namespace: m.GetNamespace(), Name: m.GetName()}
	out, problems := k.convert(in)
	k.report(name, problems)
	return name, out, nil
}

func (k *sink[I, O]) report(name model.Name, problems []model.Problem) {
	if k.source.Report != nil {
		k.source.Report(k.kind.String(), name, problems)
	}
}
