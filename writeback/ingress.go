package writeback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"wayleave.dev/ingress"
	"wayleave.dev/model"
)

// IngressService is the name of the Service that leads to the proxies.
const IngressService = "wayleave-ingress"

// defaultClass marks the IngressClass of Ingresses without a class.
const defaultClass = "ingressclass.kubernetes.io/is-default-class"

// mostNodes bounds the addresses of nodes in a status: clients need one that works, not all.
const mostNodes = 16

// Ingresses writes the objects of Ingress while this replica is elected: the IngressClass, the Service, and the
// status of Wayleave's Ingresses. Set the fields, then call Run with a context that ends with the leadership.
type Ingresses struct {
	Client   kubernetes.Interface
	Store    *model.Store
	Settings ingress.Settings
	// Selector selects the pods of the proxies, HTTP and HTTPS are their ports.
	Selector    map[string]string
	HTTP, HTTPS uint16
	// NodeAddresses says that nodes serve the ports 80 and 443: the status has their addresses if the Service has
	// none.
	NodeAddresses bool
	// NodeSelector has the labels of the nodes that serve; empty for all nodes.
	NodeSelector map[string]string
	// SetCondition gets the error of a failed write, and nil after a successful one.
	SetCondition func(error)
	// Beside, which may be nil, is told of the IngressClass of another controller for which the new class does not
	// become the default.
	Beside func(other string)
	Log    *slog.Logger

	// ours are the Ingresses whose status Wayleave writes. It is cleared when their class changes.
	ours map[model.Name]bool
	// todo are the Ingresses to process.
	todo map[model.Name]bool
	// ends are the addresses in the last status.
	ends  []netip.Addr
	names []string
}

const ingressWriterKinds = model.IngressKind | model.IngressClassKind | model.ServiceKind | model.NodeKind

// ensureEvery is the interval at which class and Service are checked, in addition to their changes.
const ensureEvery = 30 * time.Second

// Run works until ctx ends, and returns its error.
func (w *Ingresses) Run(ctx context.Context) error {
	defer w.SetCondition(nil)
	if err := w.Store.WaitSynced(ctx, ingressWriterKinds|model.EndpointSliceKind); err != nil {
		return err
	}
	watch, err := w.Store.Watch(ingressWriterKinds)
	if err != nil {
		return err
	}
	defer watch.Close()
	w.ours, w.todo = map[model.Name]bool{}, map[model.Name]bool{}
	wait, ensure := time.Duration(0), time.Time{}
	for ctx.Err() == nil {
		snap, changes, ready := watch.Poll()
		service := changes.Has(model.ServiceKind, w.service())
		class := changes.Has(model.IngressClassKind, model.Name{Name: ingress.ClassName})
		var errs []error
		if now := time.Now(); service || class || !now.Before(ensure) {
			if err := errors.Join(w.ensureClass(ctx), w.ensureService(ctx)); err != nil {
				errs = append(errs, err)
			} else {
				ensure = now.Add(ensureEvery)
			}
		}
		w.see(snap, changes)
		errs = append(errs, w.write(ctx, snap))
		err := errors.Join(errs...)
		if ctx.Err() != nil {
			break
		}
		if w.SetCondition(err); err == nil {
			wait = 0
			w.idle(ctx, ready, time.Until(ensure))
			continue
		}
		wait = min(max(2*wait, 200*time.Millisecond), ensureEvery)
		w.idle(ctx, ready, wait)
	}
	return ctx.Err()
}

func (w *Ingresses) idle(ctx context.Context, ready model.Ready, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ready.C(ctx)
}

func (w *Ingresses) service() model.Name {
	return model.Name{Namespace: DNSNamespace, Name: IngressService}
}

// see records which Ingresses a change concerns.
func (w *Ingresses) see(snap model.Snapshot, c model.Changes) {
	for n := range c.Of(model.IngressKind) {
		w.todo[n] = true
	}
	moved := false
	if c.Has(model.ServiceKind, w.service()) || c.Any(model.NodeKind) {
		ends, names := w.addresses(snap)
		moved = !slices.Equal(ends, w.ends) || !slices.Equal(names, w.names)
		w.ends, w.names = ends, names
	}
	if moved || c.Any(model.IngressClassKind) {
		for i := range snap.Ingresses() {
			w.todo[i.Name] = true
		}
	}
}

// addresses returns what clients outside should use: the addresses of the Service, otherwise the nodes'.
func (w *Ingresses) addresses(snap model.Snapshot) (ends []netip.Addr, names []string) {
	if s, ok := snap.Service(w.service()); ok && s.LoadBalancer != nil && len(s.LoadBalancer.Given)+
		len(s.LoadBalancer.GivenNames) > 0 {
		return s.LoadBalancer.Given, s.LoadBalancer.GivenNames
	}
	if !w.NodeAddresses {
		return nil, nil
	}
	n, honors := 0, snap.HonorsExclusion()
	for node := range snap.Nodes() { // in order of names
		if !node.Ready || node.Leaving || honors && node.Excluded || n == mostNodes ||
			!hasLabels(node, w.NodeSelector) {
			continue
		}
		n++
		for _, is6 := range []bool{false, true} {
			if a := node.Primary(is6); a.IsValid() {
				ends = append(ends, a)
			}
		}
	}
	slices.SortFunc(ends, netip.Addr.Compare)
	return ends, nil
}

// hasLabels reports whether a node has all labels of a selector.
func hasLabels(n *model.Node, selector map[string]string) bool {
	for k, v := range selector {
		if have, ok := n.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// write updates the status of Ingresses. Failed writes are retried.
func (w *Ingresses) write(ctx context.Context, snap model.Snapshot) error {
	var failed []error
	for n := range w.todo {
		if err := w.one(ctx, snap, n); err != nil {
			failed = append(failed, err)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		delete(w.todo, n)
	}
	const most = 3
	if len(failed) > most {
		failed = append(failed[:most], fmt.Errorf("and %d more", len(failed)-most))
	}
	return errors.Join(failed...)
}

func (w *Ingresses) one(ctx context.Context, snap model.Snapshot, n model.Name) error {
	i, ok := snap.Ingress(n)
	if !ok {
		delete(w.ours, n)
		return nil
	}
	ends, names := w.ends, w.names
	if !w.Settings.Ours(snap, i) {
		if !w.ours[n] {
			return nil
		}
		ends, names = nil, nil // no longer Wayleave's: clear the status
	}
	if !slices.Equal(i.Given, ends) || !slices.Equal(i.GivenNames, names) {
		if err := w.patch(ctx, i, ends, names); err != nil {
			return err
		}
	}
	if w.ours[n] = w.Settings.Ours(snap, i); !w.ours[n] {
		delete(w.ours, n)
	}
	return nil
}

// patch writes the status for the version that it was decided for. If that changed, the watch brings the Ingress
// again.
func (w *Ingresses) patch(ctx context.Context, i *model.Ingress, ends []netip.Addr, names []string) error {
	list := []map[string]string{}
	for _, a := range ends {
		list = append(list, map[string]string{"ip": a.String()})
	}
	for _, h := range names {
		list = append(list, map[string]string{"hostname": h})
	}
	raw, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": i.Version},
		"status": map[string]any{"loadBalancer": map[string]any{"ingress": list}}})
	if err != nil {
		return fmt.Errorf("ingress %s: %w", i.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	_, err = w.Client.NetworkingV1().Ingresses(i.Name.Namespace).Patch(ctx, i.Name.Name, types.MergePatchType, raw,
		metav1.PatchOptions{FieldManager: "wayleave"}, "status")
	if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the status of ingress %s: %w", i.Name, err)
	}
	return nil
}

// ensureClass creates the IngressClass. It does not become the default beside a class of another controller, which may
// serve Ingresses without a class. An existing one is not changed: whether it is the default is its owner's decision.
func (w *Ingresses) ensureClass(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	classes := w.Client.NetworkingV1().IngressClasses()
	have, err := classes.Get(ctx, ingress.ClassName, metav1.GetOptions{})
	switch {
	case err == nil && have.Spec.Controller != ingress.Controller:
		return fmt.Errorf(
			"IngressClass %s: spec.controller: it is %q, so its Ingresses are not served; %s is Wayleave's",
			ingress.ClassName, have.Spec.Controller, ingress.Controller)
	case err == nil:
		return nil
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("IngressClass %s: %w", ingress.ClassName, err)
	}
	class := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: ingress.ClassName,
		Labels: map[string]string{"app.kubernetes.io/managed-by": "wayleave"}},
		Spec: networkingv1.IngressClassSpec{Controller: ingress.Controller}}
	all, err := classes.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list IngressClasses: %w", err)
	}
	other := slices.IndexFunc(all.Items, func(c networkingv1.IngressClass) bool {
		return c.Annotations[defaultClass] == "true" || c.Spec.Controller != ingress.Controller
	})
	if w.Settings.Default && other < 0 {
		class.Annotations = map[string]string{defaultClass: "true"}
	}
	if _, err := classes.Create(ctx, class, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create IngressClass %s: %w", ingress.ClassName, err)
	}
	if w.Settings.Default && other >= 0 && w.Beside != nil {
		w.Beside(all.Items[other].Name)
	}
	return nil
}

func (w *Ingresses) ports() []corev1.ServicePort {
	return []corev1.ServicePort{
		{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(int32(w.HTTP))},
		{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(int32(w.HTTPS))},
	}
}

// ensureService creates the Service, or corrects its selector and its ports 80 and 443. Everything else is its
// owner's: the type, addresses, the traffic policy, more ports.
func (w *Ingresses) ensureService(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	services := w.Client.CoreV1().Services(DNSNamespace)
	have, err := services.Get(ctx, IngressService, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		dual := corev1.IPFamilyPolicyPreferDualStack
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: DNSNamespace, Name: IngressService,
			Labels: map[string]string{"app.kubernetes.io/managed-by": "wayleave"}},
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer,
				ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
				IPFamilyPolicy:        &dual, Selector: w.Selector, Ports: w.ports()}}
		if _, err := services.Create(ctx, svc, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create service %s: %w", IngressService, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("service %s: %w", IngressService, err)
	}
	ports := slices.Clone(have.Spec.Ports)
	for _, p := range w.ports() {
		i := slices.IndexFunc(ports, func(q corev1.ServicePort) bool {
			return q.Port == p.Port &&
				q.Protocol == p.Protocol
		})
		switch {
		case i < 0:
			ports = append(ports, p)
		case ports[i].TargetPort != p.TargetPort:
			ports[i].TargetPort = p.TargetPort
		}
	}
	if maps.Equal(have.Spec.Selector, w.Selector) && slices.Equal(ports, have.Spec.Ports) {
		return nil
	}
	selector := map[string]any{}
	for k := range have.Spec.Selector {
		selector[k] = nil // a merge patch removes a key by null
	}
	for k, v := range w.Selector {
		selector[k] = v
	}
	raw, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": have.ResourceVersion},
		"spec": map[string]any{"selector": selector, "ports": ports}})
	if err != nil {
		return fmt.Errorf("service %s: %w", IngressService, err)
	}
	if _, err := services.Patch(ctx, IngressService, types.MergePatchType, raw, metav1.PatchOptions{}); err != nil &&
		!apierrors.IsConflict(err) {
		return fmt.Errorf("repair service %s: %w", IngressService, err)
	}
	return nil
}
