package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/internal/await"
)

const (
	// container is the name of the only container of a pod.
	container = "probe"
	// app is the label by which Services and policies select pods.
	app = "app"
	// nobody runs the containers.
	nobody = 65534
)

// Pod is a pod to start.
type Pod struct {
	Name, Node string
	// App is what Services and policies select it by.
	App string
}

// PodState is what became of a pod.
type PodState struct {
	Pod
	Ready bool
	// Problem says why the pod is not ready.
	Problem string
	Addrs   []netip.Addr
}

// Start creates pods on their nodes. Each runs the command, and is ready when it answers HTTP on the port.
func (s *Sandbox) Start(ctx context.Context, pods []Pod, port int, command ...string) error {
	for _, p := range pods {
		if err := s.create(ctx, s.pod(p, port, command)); err != nil {
			return err
		}
	}
	return nil
}

// create creates a pod. The account that it needs is made a moment after the namespace.
func (s *Sandbox) create(ctx context.Context, p *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := await.Success(ctx, every, func() error {
		_, err := s.client.CoreV1().Pods(s.name).Create(ctx, p, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("pod %s/%s: %w", s.name, p.Name, err)
	}
	return nil
}

func (s *Sandbox) pod(p Pod, port int, command []string) *corev1.Pod {
	yes, no, user, now := true, false, int64(nobody), int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name, Labels: map[string]string{app: p.App}},
		Spec: corev1.PodSpec{
			// No scheduler: also nodes that are cordoned or tainted have a network.
			NodeName:                      p.Node,
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			AutomountServiceAccountToken:  &no,
			EnableServiceLinks:            &no,
			TerminationGracePeriodSeconds: &now,
			SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{Name: container, Image: s.image, ImagePullPolicy: corev1.PullIfNotPresent,
				Command: command,
				Env: []corev1.EnvVar{{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{
					FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}},
				SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
				ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
					HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(int32(port))}}}}},
		},
	}
}

// Pods are the states of all pods of the namespace.
func (s *Sandbox) Pods(ctx context.Context) (out []PodState, err error) {
	list, err := s.client.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("pods of %s: %w", s.name, err)
	}
	for _, p := range list.Items {
		one := PodState{Pod: Pod{Name: p.Name, Node: p.Spec.NodeName, App: p.Labels[app]},
			Problem: string(p.Status.Phase) + " " + p.Status.Reason + " " + p.Status.Message}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady {
				one.Ready = c.Status == corev1.ConditionTrue
			}
		}
		for _, c := range p.Status.ContainerStatuses {
			if w := c.State.Waiting; w != nil {
				one.Problem += " " + w.Reason + " " + w.Message
			}
			if e := c.State.Terminated; e != nil {
				one.Problem += fmt.Sprintf(" exit status %d %s", e.ExitCode, e.Message)
			}
		}
		one.Problem = strings.Join(strings.Fields(one.Problem), " ")
		for _, ip := range p.Status.PodIPs {
			if a, err := apiaddr.ParseAddr(ip.IP); err == nil {
				one.Addrs = append(one.Addrs, a)
			}
		}
		out = append(out, one)
	}
	return out, nil
}

// Service is a Service to create. It selects pods by App.
type Service struct {
	Name, App string
	// Type is ClusterIP, NodePort, LoadBalancer or ExternalName.
	Type string
	// Headless has no ClusterIP. Target is the name of ExternalName.
	Headless bool
	Target   string
	TCP, UDP int
}

// Exposed is where a Service is reached.
type Exposed struct {
	// Addrs are its ClusterIPs, External those of its load balancer.
	Addrs, External  []netip.Addr
	NodeTCP, NodeUDP int
}

// CreateService creates a Service, in both families where the cluster has both.
func (s *Sandbox) CreateService(ctx context.Context, v Service) (Exposed, error) {
	o := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: v.Name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceType(v.Type), ExternalName: v.Target}}
	if v.Target == "" {
		both := corev1.IPFamilyPolicyPreferDualStack
		o.Spec.IPFamilyPolicy, o.Spec.Selector = &both, map[string]string{app: v.App}
		o.Spec.Ports = []corev1.ServicePort{{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: int32(v.TCP)}}
		if v.UDP != 0 {
			o.Spec.Ports = append(o.Spec.Ports, corev1.ServicePort{Name: "udp", Protocol: corev1.ProtocolUDP,
				Port: int32(v.UDP)})
		}
	}
	if v.Headless {
		o.Spec.ClusterIP = corev1.ClusterIPNone
	}
	made, err := s.client.CoreV1().Services(s.name).Create(ctx, o, metav1.CreateOptions{})
	if err != nil {
		return Exposed{}, fmt.Errorf("service %s/%s: %w", s.name, v.Name, err)
	}
	return exposed(made), nil
}

// Exposed reads where a Service is reached now. An empty namespace is that of the sandbox.
func (s *Sandbox) Exposed(ctx context.Context, namespace, name string) (Exposed, error) {
	if namespace == "" {
		namespace = s.name
	}
	o, err := s.client.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return Exposed{}, fmt.Errorf("service %s/%s: %w", namespace, name, err)
	}
	return exposed(o), nil
}

func exposed(o *corev1.Service) (out Exposed) {
	for _, ip := range o.Spec.ClusterIPs {
		if a, err := apiaddr.ParseAddr(ip); err == nil {
			out.Addrs = append(out.Addrs, a)
		}
	}
	for _, p := range o.Spec.Ports {
		if p.Protocol == corev1.ProtocolUDP {
			out.NodeUDP = int(p.NodePort)
		} else {
			out.NodeTCP = int(p.NodePort)
		}
	}
	for _, i := range o.Status.LoadBalancer.Ingress {
		if a, err := apiaddr.ParseAddr(i.IP); err == nil {
			out.External = append(out.External, a)
		}
	}
	return out
}

// Isolate lets only pods of the app from reach the pods of an app; with an empty from, no pod does.
func (s *Sandbox) Isolate(ctx context.Context, name, from string) error {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{
			MatchLabels: map[string]string{app: name}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}}
	if from != "" {
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
			PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{app: from}}}}}}
	}
	if _, err := s.client.NetworkingV1().NetworkPolicies(s.name).Create(ctx, p, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("networkpolicy %s/%s: %w", s.name, name, err)
	}
	return nil
}

// HasClass reports whether the cluster has an IngressClass.
func (s *Sandbox) HasClass(ctx context.Context, class string) (bool, error) {
	_, err := s.client.NetworkingV1().IngressClasses().Get(ctx, class, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ingressclass %s: %w", class, err)
	}
	return true, nil
}

// CreateIngress creates an Ingress that leads from a host to a Service.
func (s *Sandbox) CreateIngress(ctx context.Context, class, host, service string, port int) error {
	prefix := networkingv1.PathTypePrefix
	o := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: service}, Spec: networkingv1.IngressSpec{
		IngressClassName: &class, Rules: []networkingv1.IngressRule{{Host: host,
			IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
				Paths: []networkingv1.HTTPIngressPath{{Path: "/", PathType: &prefix,
					Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: service,
						Port: networkingv1.ServiceBackendPort{Number: int32(port)}}}}}}}}}}}
	if _, err := s.client.NetworkingV1().Ingresses(s.name).Create(ctx, o, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("ingress %s/%s: %w", s.name, service, err)
	}
	return nil
}

// IngressAddrs are the addresses in the status of an Ingress.
func (s *Sandbox) IngressAddrs(ctx context.Context, name string) (out []netip.Addr, err error) {
	o, err := s.client.NetworkingV1().Ingresses(s.name).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("ingress %s/%s: %w", s.name, name, err)
	}
	for _, i := range o.Status.LoadBalancer.Ingress {
		if a, err := apiaddr.ParseAddr(i.IP); err == nil {
			out = append(out, a)
		}
	}
	return out, nil
}
