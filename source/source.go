// Package source converts API objects to the model. It strips them to the fields that features use, and validates
// them: an object may come from a manifest that no API server has validated, or from a newer API server.
//
// Invariants:
//   - An invalid part is left out and reported in a Problem; the valid parts are used.
//   - Nothing of the API object is kept: the result shares no memory with it except strings.
package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/model"
)

// intern makes equal strings share memory: node and zone names repeat in each of 100,000 endpoints.
func intern(s string) string { return unique.Make(s).Value() }

// checker collects the problems of one object.
type checker struct {
	kind     string
	object   model.Name
	problems []model.Problem
	// ports and selectors count those of a policy's rules.
	ports, selectors int
}

func newChecker(kind string, m *metav1.ObjectMeta) *checker {
	return &checker{kind: kind, object: nameOf(m)}
}

func nameOf(m *metav1.ObjectMeta) model.Name {
	return model.Name{Namespace: intern(m.Namespace), Name: m.Name}
}

func (c *checker) bad(field, format string, args ...any) {
	c.problems = append(c.problems, model.Problem{
		Kind: c.kind, Object: c.object, Field: field, Reason: fmt.Sprintf(format, args...),
	})
}

// addr parses an address as Kubernetes does; ok is false, with a problem, if it is invalid.
func (c *checker) addr(field, s string) (a netip.Addr, ok bool) {
	a, err := apiaddr.ParseAddr(s)
	if err != nil {
		c.bad(field, "%v", err)
	}
	return a, err == nil
}

// cidr parses a CIDR as Kubernetes does: host bits are allowed and ignored.
func (c *checker) cidr(field, s string) (p netip.Prefix, ok bool) {
	p, err := apiaddr.ParsePrefix(s)
	if err != nil {
		c.bad(field, "%v", err)
	}
	return p.Masked(), err == nil
}

func (c *checker) protocol(field string, p corev1.Protocol) (model.Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return model.TCP, true
	case corev1.ProtocolUDP:
		return model.UDP, true
	case corev1.ProtocolSCTP:
		return model.SCTP, true
	}
	c.bad(field, "%q is not a protocol; TCP, UDP and SCTP are allowed", p)
	return 0, false
}

func (c *checker) port(field string, n int32) (uint16, bool) {
	if n < 1 || n > 65535 {
		c.bad(field, "%d is not a port; 1 to 65535 are allowed", n)
		return 0, false
	}
	return uint16(n), true
}

// nodePort parses a port of every node. Ports of the node's own listeners are refused, because a cluster's range of
// node ports may contain them.
func (c *checker) nodePort(field string, proto model.Protocol, n int32) (uint16, bool) {
	port, ok := c.port(field, n)
	if whose := model.ReservedPort(proto, port); ok && whose != "" {
		c.bad(field, "%d/%s is a port of %s on the nodes; any other of the range is allowed; it is not served",
			n, proto, whose)
		return 0, false
	}
	return port, ok
}

// Service converts a Service.
func Service(in *corev1.Service) (*model.Service, []model.Problem) {
	c := newChecker("Service", &in.ObjectMeta)
	out := &model.Service{Name: c.object, Created: in.CreationTimestamp.Time,
		PublishNotReady: in.Spec.PublishNotReadyAddresses}
	switch in.Spec.Type {
	case corev1.ServiceTypeClusterIP, "":
		out.Type = model.ClusterIP
	case corev1.ServiceTypeNodePort:
		out.Type = model.NodePort
	case corev1.ServiceTypeLoadBalancer:
		out.Type = model.LoadBalancer
	case corev1.ServiceTypeExternalName:
		out.Type = model.ExternalName
		out.ExternalName = c.externalName(in.Spec.ExternalName)
		return out, c.problems
	default:
		c.bad("spec.type", "%q is not a type; ClusterIP, NodePort, LoadBalancer and ExternalName are allowed",
			in.Spec.Type)
		return nil, c.problems
	}
	c.clusterIPs(in, out)
	for i := range in.Spec.Ports {
		c.servicePort(i, &in.Spec.Ports[i], out)
	}
	out.OtherDNS = otherDNS(in)
	c.external(in, out)
	if out.Type == model.LoadBalancer {
		c.balancer(in, out)
	}
	c.policies(in, out)
	c.bounds(out)
	return out, c.problems
}

func (c *checker) externalName(s string) string {
	name := strings.TrimSuffix(s, ".")
	if name == "" || len(name) > 253 || strings.ContainsAny(name, " \t\n\\\"") || strings.Contains(name, "..") {
		c.bad("spec.externalName", "%q is not a DNS name", s)
		return ""
	}
	for label := range strings.SplitSeq(name, ".") {
		if len(label) > 63 || label == "" {
			c.bad("spec.externalName", "%q is not a DNS name: a label has 1 to 63 characters", s)
			return ""
		}
	}
	return name
}

func (c *checker) clusterIPs(in *corev1.Service, out *model.Service) {
	ips, field := in.Spec.ClusterIPs, "spec.clusterIPs[%d]"
	if len(ips) == 0 && in.Spec.ClusterIP != "" {
		ips, field = []string{in.Spec.ClusterIP}, "spec.clusterIP"
	}
	for i, s := range ips {
		at := field
		if strings.Contains(field, "%") {
			at = fmt.Sprintf(field, i)
		}
		if s == corev1.ClusterIPNone {
			out.Headless = true
			continue
		}
		a, ok := c.addr(at, s)
		if !ok {
			continue
		}
		for _, b := range out.ClusterIPs {
			if a.Is4() == b.Is4() {
				c.bad(at, "%s is a second address of its family; one of each is allowed", a)
				ok = false
			}
		}
		if ok {
			out.ClusterIPs = append(out.ClusterIPs, a)
		}
	}
	if out.Headless {
		out.ClusterIPs = nil
	}
}

func (c *checker) servicePort(i int, in *corev1.ServicePort, out *model.Service) {
	field := func(name string) string { return fmt.Sprintf("spec.ports[%d].%s", i, name) }
	proto, ok := c.protocol(field("protocol"), in.Protocol)
	if !ok {
		return
	}
	port, ok := c.port(field("port"), in.Port)
	if !ok {
		return
	}
	p := model.ServicePort{Name: intern(in.Name), Protocol: proto, Port: port}
	if in.TargetPort.IntVal != 0 || in.TargetPort.StrVal != "" {
		p.Target = intern(in.TargetPort.String())
	}
	if in.NodePort != 0 {
		if p.NodePort, ok = c.nodePort(field("nodePort"), proto, in.NodePort); !ok {
			p.NodePort = 0
		}
	}
	for _, q := range out.Ports {
		if q.Port == p.Port && q.Protocol == p.Protocol {
			c.bad(field("port"), "%d/%s is there twice", p.Port, p.Protocol)
			return
		}
		if q.Name == p.Name {
			c.bad(field("name"), "%q is there twice", p.Name)
			return
		}
	}
	out.Ports = append(out.Ports, p)
}

// EndpointSlice converts an EndpointSlice; nil without problems for one that belongs to no Service, or has names
// instead of addresses.
func EndpointSlice(in *discoveryv1.EndpointSlice) (*model.EndpointSlice, []model.Problem) {
	c := newChecker("EndpointSlice", &in.ObjectMeta)
	service := in.Labels[discoveryv1.LabelServiceName]
	if service == "" {
		return nil, nil
	}
	_, headless := in.Labels[corev1.IsHeadlessService]
	out := &model.EndpointSlice{Name: c.object, Service: service, NotProxied: headless}
	switch in.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
	case discoveryv1.AddressTypeFQDN:
		return nil, nil // valid, but service proxies and DNS never served names
	default:
		c.bad("addressType", "%q is not served; IPv4 and IPv6 are allowed", in.AddressType)
		return nil, c.problems
	}
	for i := range in.Ports {
		if p, ok := c.endpointPort(i, &in.Ports[i]); ok {
			out.Ports = append(out.Ports, p)
		}
	}
	out.Endpoints = make([]model.Endpoint, 0, len(in.Endpoints))
	for i := range in.Endpoints {
		if e, ok := c.endpoint(i, &in.Endpoints[i], in.AddressType); ok {
			out.Endpoints = append(out.Endpoints, e)
		}
	}
	return out, c.problems
}

func (c *checker) endpointPort(i int, in *discoveryv1.EndpointPort) (model.EndpointPort, bool) {
	field := func(name string) string { return fmt.Sprintf("ports[%d].%s", i, name) }
	var p model.EndpointPort
	if in.Name != nil {
		p.Name = intern(*in.Name)
	}
	proto := corev1.ProtocolTCP
	if in.Protocol != nil {
		proto = *in.Protocol
	}
	var ok bool
	if p.Protocol, ok = c.protocol(field("protocol"), proto); !ok {
		return p, false
	}
	if in.Port == nil {
		c.bad(field("port"), "is missing: a port without a number cannot be proxied")
		return p, false
	}
	p.Port, ok = c.port(field("port"), *in.Port)
	return p, ok
}

func (c *checker) endpoint(i int, in *discoveryv1.Endpoint, family discoveryv1.AddressType) (model.Endpoint, bool) {
	var e model.Endpoint
	if len(in.Addresses) == 0 {
		c.bad(fmt.Sprintf("endpoints[%d].addresses", i), "is empty")
		return e, false
	}
	field := fmt.Sprintf("endpoints[%d].addresses[0]", i)
	a, ok := c.addr(field, in.Addresses[0])
	if !ok {
		return e, false
	}
	if a.Is4() != (family == discoveryv1.AddressTypeIPv4) {
		c.bad(field, "%s does not have the slice's addressType %s", a, family)
		return e, false
	}
	// The API forbids these: they would reach the node itself or nothing.
	if a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
		c.bad(field,
			"%s cannot be an address of an endpoint: unspecified, loopback, link-local and multicast addresses are "+
				"refused", a)
		return e, false
	}
	e.Addr = a
	e.Ready = deref(in.Conditions.Ready, true)
	e.Serving = deref(in.Conditions.Serving, true)
	e.Terminating = deref(in.Conditions.Terminating, false)
	e.Hostname = deref(in.Hostname, "")
	e.Node = intern(deref(in.NodeName, ""))
	e.Zone = intern(deref(in.Zone, ""))
	if in.Hints != nil {
		for _, z := range in.Hints.ForZones {
			e.ForZones = append(e.ForZones, intern(z.Name))
		}
		for _, n := range in.Hints.ForNodes {
			e.ForNodes = append(e.ForNodes, intern(n.Name))
		}
	}
	if in.TargetRef != nil && in.TargetRef.Kind == "Pod" {
		e.Pod = in.TargetRef.Name
	}
	return e, true
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// Pod converts a Pod; nil for one that has ended, or that has neither a node nor an address.
func Pod(in *corev1.Pod) (*model.Pod, []model.Problem) {
	c := newChecker("Pod", &in.ObjectMeta)
	if in.Status.Phase == corev1.PodSucceeded || in.Status.Phase == corev1.PodFailed || in.Spec.NodeName == "" &&
		len(in.Status.PodIPs) == 0 {
		return nil, nil
	}
	out := &model.Pod{Name: c.object, Node: intern(in.Spec.NodeName), HostNetwork: in.Spec.HostNetwork,
		UID: string(in.UID), Created: in.CreationTimestamp.Time, Labels: internLabels(in.Labels)}
	for i, ip := range in.Status.PodIPs {
		if a, ok := c.addr(fmt.Sprintf("status.podIPs[%d]", i), ip.IP); ok {
			out.IPs = append(out.IPs, a)
		}
	}
	c.podDNS(in, out)
	c.namedPorts(in, out)
	return out, c.problems
}

// podDNS computes what the kubelet writes to the pod's resolv.conf. With the node's network, ClusterFirst means
// Default.
func (c *checker) podDNS(in *corev1.Pod, out *model.Pod) {
	switch in.Spec.DNSPolicy {
	case corev1.DNSClusterFirst, "":
		out.ClusterDNS = !in.Spec.HostNetwork
	case corev1.DNSClusterFirstWithHostNet:
		out.ClusterDNS = true
	}
	out.NDots = 1 // the resolver's own
	if out.ClusterDNS {
		out.NDots = 5 // the kubelet's
	}
	if in.Spec.DNSConfig == nil {
		return
	}
	out.Searches = slices.Clone(in.Spec.DNSConfig.Searches)
	for i, o := range in.Spec.DNSConfig.Options {
		if o.Name != "ndots" {
			continue
		}
		n, err := strconv.Atoi(deref(o.Value, ""))
		if err != nil || n < 0 {
			c.bad(fmt.Sprintf("spec.dnsConfig.options[%d].value", i), "%q is not a number of dots", deref(o.Value, ""))
			out.NDots = 1
			continue
		}
		out.NDots = min(n, 15) // as resolvers do
	}
}

// toBeDeleted is a taint of the cluster autoscaler, which kube-proxy also reads.
const toBeDeleted = "ToBeDeletedByClusterAutoscaler"

// Node converts a Node.
func Node(in *corev1.Node) (*model.Node, []model.Problem) {
	c := newChecker("Node", &in.ObjectMeta)
	out := &model.Node{Name: intern(in.Name), Created: in.CreationTimestamp.Time,
		Zone: intern(in.Labels[corev1.LabelTopologyZone]), Labels: internLabels(in.Labels), BGP: c.nodeBGP(in)}
	_, out.Excluded = in.Labels[corev1.LabelNodeExcludeBalancers]
	for i, a := range in.Status.Addresses {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		ip, ok := c.addr(fmt.Sprintf("status.addresses[%d]", i), a.Address)
		switch {
		case !ok:
		case a.Type == corev1.NodeInternalIP:
			out.InternalIPs = append(out.InternalIPs, ip)
		default:
			out.ExternalIPs = append(out.ExternalIPs, ip)
		}
	}
	if len(out.InternalIPs) == 0 {
		// Kubernetes then uses a node's ExternalIPs as its addresses (nodeutil.GetNodeHostIPs).
		out.InternalIPs = slices.Clone(out.ExternalIPs)
	}
	cidrs := in.Spec.PodCIDRs
	if len(cidrs) == 0 && in.Spec.PodCIDR != "" {
		cidrs = []string{in.Spec.PodCIDR}
	}
	for i, s := range cidrs {
		if p, ok := c.podCIDR(fmt.Sprintf("spec.podCIDRs[%d]", i), s); ok {
			out.PodCIDRs = append(out.PodCIDRs, p)
		}
	}
	out.Leaving = in.DeletionTimestamp != nil || slices.ContainsFunc(in.Spec.Taints,
		func(t corev1.Taint) bool { return t.Key == toBeDeleted || t.Key == corev1.TaintNodeOutOfService })
	for _, cond := range in.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			out.Ready = cond.Status == corev1.ConditionTrue
		}
	}
	return out, c.problems
}

// Namespace converts a Namespace.
func Namespace(in *corev1.Namespace) (*model.Namespace, []model.Problem) {
	leaving := in.DeletionTimestamp != nil || in.Status.Phase == corev1.NamespaceTerminating
	return &model.Namespace{Name: intern(in.Name), Labels: internLabels(in.Labels), UID: string(in.UID),
		Leaving: leaving}, nil
}
