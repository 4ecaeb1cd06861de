package model

import (
	"net/netip"
	"time"
)

// ServiceType is a Service's spec.type.
type ServiceType uint8

// The four types of Kubernetes Services.
const (
	ClusterIP ServiceType = iota
	NodePort
	LoadBalancer
	ExternalName
)

// String is the name that the API uses.
func (t ServiceType) String() string {
	switch t {
	case ClusterIP:
		return "ClusterIP"
	case NodePort:
		return "NodePort"
	case LoadBalancer:
		return "LoadBalancer"
	case ExternalName:
		return "ExternalName"
	}
	return "unknown"
}

// Service is what Wayleave uses of a Service.
type Service struct {
	Name Name
	Type ServiceType
	// Created decides between Services that claim one address and port: the older
	// has it.
	Created time.Time
	// ClusterIPs has at most one address per family; none for headless and
	// ExternalName services.
	ClusterIPs []netip.Addr
	// Headless is clusterIP "None".
	Headless bool
	// ExternalName is the target of a service of that type, with no final dot.
	ExternalName string
	Ports        []ServicePort
	// PublishNotReady has DNS and proxies treat all endpoints as ready.
	PublishNotReady bool
	// ExternalIPs are spec.externalIPs; LoadBalancerIPs those of the status with
	// ipMode VIP, which nodes must serve themselves (KEP-1860).
	ExternalIPs, LoadBalancerIPs []netip.Addr
	// SourceRanges limit who may use LoadBalancerIPs; empty for everybody.
	SourceRanges []netip.Prefix
	// Affinity is how long a client keeps its endpoint; 0 is none.
	Affinity time.Duration
	// ExternalLocal and InternalLocal are the traffic policies Local.
	ExternalLocal, InternalLocal bool
	// HealthCheckPort is spec.healthCheckNodePort, 0 when there is none.
	HealthCheckPort uint16
	// LoadBalancer is there for the type LoadBalancer only.
	LoadBalancer *Balancer
	// OtherProxy says that another service proxy serves it, or none: it has a label
	// service.kubernetes.io/service-proxy-name or service.kubernetes.io/headless.
	OtherProxy bool
}

// ServicePort is one port of a Service.
type ServicePort struct {
	// Name joins the port with that of the EndpointSlices; empty for the only port.
	Name     string
	Protocol Protocol
	Port     uint16
	// NodePort is 0 when there is none.
	NodePort uint16
}

// EndpointSlice is a part of a Service's endpoints.
type EndpointSlice struct {
	Name Name
	// Service is the owner, by the label kubernetes.io/service-name.
	Service string
	// NotProxied says that the slice is for DNS alone, by the label
	// service.kubernetes.io/headless. Service proxies leave it out.
	NotProxied bool
	Ports      []EndpointPort
	Endpoints  []Endpoint
}

// ServiceName names the Service that the slice belongs to.
func (s *EndpointSlice) ServiceName() Name {
	return Name{Namespace: s.Name.Namespace, Name: s.Service}
}

// EndpointPort is a port that every endpoint of a slice serves.
type EndpointPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Endpoint is one backend address. Only the first address of an API endpoint
// is used: consumers are told to treat the rest as its equals.
type Endpoint struct {
	Addr netip.Addr
	// Ready, Serving and Terminating are the conditions, defaults applied
	// (discovery.k8s.io/v1: ready and serving unset mean true, terminating false).
	Ready       bool
	Serving     bool
	Terminating bool
	// Hostname is the DNS label of a StatefulSet pod, or empty.
	Hostname string
	Node     string
	Zone     string
	// ForZones and ForNodes are the hints of who should use it (KEP-2433, KEP-3015).
	ForZones, ForNodes []string
	// Pod is the name of the pod behind it, in the slice's namespace, or empty.
	Pod string
}

// Pod is what Wayleave uses of a Pod. Pods that have ended are not kept.
type Pod struct {
	Name Name
	Node string
	// IPs are the pod's addresses; the node's for HostNetwork pods. A pod that was
	// scheduled and has not started has none yet.
	IPs         []netip.Addr
	HostNetwork bool
	// ClusterDNS says that the pod asks the cluster's DNS, with its search list.
	ClusterDNS bool
	// Searches are what dnsConfig adds to the search list.
	Searches []string
	// NDots is the resolver's option of that name.
	NDots int
	// UID tells the pod from a later one of the same name.
	UID string
	// Created says which of two pods that claim one address is the later.
	Created time.Time
	Labels  map[string]string
	// Ports are those that have a name, which policies may use.
	Ports []NamedPort
}

// NamedPort is a named containerPort of a pod.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Node is what Wayleave uses of a Node.
type Node struct {
	Name string
	// InternalIPs in the order of the API: the first of a family is primary.
	InternalIPs []netip.Addr
	// ExternalIPs are its other addresses (status.addresses of type ExternalIP).
	ExternalIPs []netip.Addr
	PodCIDRs    []netip.Prefix
	Zone        string
	Ready       bool
	// Leaving nodes are being deleted: load balancers should send nothing to them.
	Leaving bool
	// Excluded nodes answer for no load balancer's address
	// (node.kubernetes.io/exclude-from-external-load-balancers).
	Excluded bool
	Labels   map[string]string
}

// Primary is the node's first internal address of the family asked for, or the
// zero Addr.
func (n *Node) Primary(is6 bool) netip.Addr {
	for _, a := range n.InternalIPs {
		if a.Is6() == is6 {
			return a
		}
	}
	return netip.Addr{}
}

// Namespace is what Wayleave uses of a Namespace.
type Namespace struct {
	Name   string
	Labels map[string]string
	// UID tells the namespace from a later one of the same name. That of kube-system is
	// the cluster's.
	UID string
	// Leaving ones are being deleted, with all objects in them.
	Leaving bool
}
