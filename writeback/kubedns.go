package writeback

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/source"
)

// The Service of the cluster DNS, by its conventional name.
const (
	DNSNamespace = source.DNSNamespace
	DNSName      = source.DNSName
	// previousSpec stores the former spec of a Service that was taken over.
	previousSpec = source.PreviousSpec
)

// DNSService describes the Service kube-dns that this cluster should have.
type DNSService struct {
	// VIPs are its addresses, at most one per family, primary first. Empty means
	// the 10th address of the service range, found by that of Service kubernetes.
	VIPs []netip.Addr
	// Selector selects the pods that answer; TargetPort is their port.
	Selector   map[string]string
	TargetPort uint16
}

// Ensure creates the Service or takes over an existing one: its address stays, its selector and ports become
// Wayleave's. It returns an error if an existing Service has another address than the kubelets give to pods.
func (d DNSService) Ensure(ctx context.Context, client kubernetes.Interface) error {
	services := client.CoreV1().Services(DNSNamespace)
	have, err := services.Get(ctx, DNSName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return d.create(ctx, client)
	}
	if err != nil {
		return fmt.Errorf("service kube-dns: %w", err)
	}
	if a, err := apiaddr.ParseAddr(have.Spec.ClusterIP); len(d.VIPs) > 0 && (err != nil || a != d.VIPs[0]) {
		return fmt.Errorf("service %s/%s: spec.clusterIP: it is %s, but the kubelets give pods %s as their DNS "+
			"server (setting clusterDNS); delete the Service or correct the setting",
			DNSNamespace, DNSName, have.Spec.ClusterIP, d.VIPs[0])
	}
	if maps.Equal(have.Spec.Selector, d.Selector) && slices.EqualFunc(have.Spec.Ports, d.ports(), samePort) {
		return nil
	}
	return d.takeOver(ctx, client, have)
}

// Foreign reports whether the Service exists and was neither created nor taken over by Wayleave, and names what it
// leads to: a pod that its selector matches and that has not ended, or an endpoint. user is empty if there is none.
func (d DNSService) Foreign(ctx context.Context, client kubernetes.Interface) (foreign bool, user string, err error) {
	svc, err := client.CoreV1().Services(DNSNamespace).Get(ctx, DNSName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, "", nil
	}
	if err != nil {
		return false, "", fmt.Errorf("service kube-dns: %w", err)
	}
	if source.OwnDNS(svc) {
		return false, "", nil
	}
	if len(svc.Spec.Selector) > 0 {
		pods, err := client.CoreV1().Pods(DNSNamespace).List(ctx, metav1.ListOptions{
			LabelSelector: labels.SelectorFromSet(svc.Spec.Selector).String(), Limit: 100})
		if err != nil {
			return true, "", fmt.Errorf("pods of service kube-dns: %w", err)
		}
		for _, p := range pods.Items {
			if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
				return true, "pod " + p.Namespace + "/" + p.Name, nil
			}
		}
	}
	slices, err := client.DiscoveryV1().EndpointSlices(DNSNamespace).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + DNSName, Limit: 100})
	if err != nil {
		return true, "", fmt.Errorf("endpoints of service kube-dns: %w", err)
	}
	for _, s := range slices.Items {
		for _, e := range s.Endpoints {
			if len(e.Addresses) > 0 {
				return true, "endpoint " + e.Addresses[0], nil
			}
		}
	}
	return true, "", nil
}

func samePort(a, b corev1.ServicePort) bool {
	return a.Name == b.Name && a.Protocol == b.Protocol && a.Port == b.Port && a.TargetPort == b.TargetPort
}

func (d DNSService) ports() []corev1.ServicePort {
	target := intstr.FromInt32(int32(d.TargetPort))
	return []corev1.ServicePort{
		{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: target},
		{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, TargetPort: target},
	}
}

func (d DNSService) create(ctx context.Context, client kubernetes.Interface) error {
	vips := d.VIPs
	if len(vips) == 0 {
		var err error
		if vips, err = tenth(ctx, client); err != nil {
			return err
		}
	}
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: DNSNamespace, Name: DNSName,
			Labels: map[string]string{
				"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS",
				source.ManagedBy: source.Wayleave,
			},
		},
		Spec: corev1.ServiceSpec{Selector: d.Selector, Ports: d.ports(), ClusterIP: vips[0].String()},
	}
	for _, a := range vips {
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, a.String())
	}
	dual := corev1.IPFamilyPolicyPreferDualStack
	svc.Spec.IPFamilyPolicy = &dual
	if _, err := client.CoreV1().Services(DNSNamespace).Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create service kube-dns at %s: %w", vips[0], err)
	}
	return nil
}

// tenth is the address that kubeadm would choose: the Service kubernetes has the first of the range.
func tenth(ctx context.Context, client kubernetes.Interface) ([]netip.Addr, error) {
	svc, err := client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("service kubernetes, to find the service range: %w", err)
	}
	a, err := apiaddr.ParseAddr(svc.Spec.ClusterIP)
	if err != nil {
		return nil, fmt.Errorf("service default/kubernetes: spec.clusterIP: %w", err)
	}
	for range 9 {
		a = a.Next()
	}
	return []netip.Addr{a}, nil
}

func (d DNSService) takeOver(ctx context.Context, client kubernetes.Interface, have *corev1.Service) error {
	meta := map[string]any{"resourceVersion": have.ResourceVersion}
	if have.Annotations[previousSpec] == "" && have.Labels[source.ManagedBy] != source.Wayleave {
		old, err := json.Marshal(map[string]any{"selector": have.Spec.Selector, "ports": have.Spec.Ports})
		if err != nil {
			return fmt.Errorf("service kube-dns: %w", err)
		}
		meta["annotations"] = map[string]string{previousSpec: string(old)}
	}
	selector := map[string]any{}
	for k := range have.Spec.Selector {
		selector[k] = nil // a merge patch removes a key by null
	}
	for k, v := range d.Selector {
		selector[k] = v
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": meta,
		"spec":     map[string]any{"selector": selector, "ports": d.ports()},
	})
	if err != nil {
		return fmt.Errorf("service kube-dns: %w", err)
	}
	if _, err := client.CoreV1().Services(DNSNamespace).Patch(ctx, DNSName, types.MergePatchType, patch,
		metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("take over service kube-dns: %w", err)
	}
	return nil
}
