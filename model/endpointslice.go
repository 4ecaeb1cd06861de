package model

import (
	"iter"
	"net/netip"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

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

// sliceByService finds the slices of a Service.
var sliceByService = statedb.Index[*EndpointSlice, Name]{
	Name:       "service",
	FromObject: func(s *EndpointSlice) index.KeySet { return index.NewKeySet(key(s.ServiceName())) },
	FromKey:    key,
}

// A slice's change is a change of its Service: plans are of Services.
var endpointSlices = describe(descriptor[*EndpointSlice]{kind: EndpointSliceKind, label: "EndpointSlice",
	name:    func(s *EndpointSlice) Name { return s.Name },
	indexes: []statedb.Indexer[*EndpointSlice]{sliceByService},
	partOf:  ServiceKind, owner: (*EndpointSlice).ServiceName})

// PutEndpointSlice sets a slice; the store owns it from now on.
func (w *Writer) PutEndpointSlice(o *EndpointSlice) { put(w, endpointSlices, o) }

// EndpointSlices yields the slices of one Service.
func (v Snapshot) EndpointSlices(service Name) iter.Seq[*EndpointSlice] {
	return list(v, endpointSlices, sliceByService.Query(service))
}
