package model

import (
	"iter"
	"net/netip"
	"time"

	"github.com/cilium/statedb"
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
	// OtherDNS says that it is the Service of the cluster DNS and leads to a DNS server that is not Wayleave's.
	OtherDNS bool
}

// ServicePort is one port of a Service.
type ServicePort struct {
	// Name joins the port with that of the EndpointSlices; empty for the only port.
	Name     string
	Protocol Protocol
	Port     uint16
	// NodePort is 0 when there is none.
	NodePort uint16
	// Target is targetPort, a number or a name; empty if the Service has none. Only Ingresses that name it use it:
	// endpoints have their ports from EndpointSlices.
	Target string
}

var services = describe(descriptor[*Service]{kind: ServiceKind, label: "Service",
	name:    func(s *Service) Name { return s.Name },
	indexes: []statedb.Indexer[*Service]{serviceByClaim}})

// PutService sets a Service; the store owns it from now on.
func (w *Writer) PutService(o *Service) { put(w, services, o) }

// Service returns the Service of that name.
func (v Snapshot) Service(n Name) (*Service, bool) { return get(v, services, n) }

// Services yields all Services.
func (v Snapshot) Services() iter.Seq[*Service] { return all(v, services) }
