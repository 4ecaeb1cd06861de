package model

import (
	"iter"
	"net/netip"
)

// ServiceCIDR is a range from which the API server gives ClusterIPs (KEP-1880).
type ServiceCIDR struct {
	Name  string
	CIDRs []netip.Prefix
}

var serviceCIDRs = describe(descriptor[*ServiceCIDR]{kind: ServiceCIDRKind, label: "ServiceCIDR",
	name: func(c *ServiceCIDR) Name { return Name{Name: c.Name} }})

// PutServiceCIDR sets a range; the store owns it from now on.
func (w *Writer) PutServiceCIDR(o *ServiceCIDR) { put(w, serviceCIDRs, o) }

// ServiceCIDRs yields all ranges.
func (v Snapshot) ServiceCIDRs() iter.Seq[*ServiceCIDR] { return all(v, serviceCIDRs) }
