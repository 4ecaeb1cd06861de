package model

import (
	"math"
	"net/netip"
	"time"
)

// Balancer is what a Service of type LoadBalancer asks for, and has.
type Balancer struct {
	// UID tells the Service from a later one of the same name; Created orders those
	// that ask for the same.
	UID     string
	Created time.Time
	// Version is the resourceVersion that this was read at.
	Version string
	// Leaving ones are being deleted: they get nothing new. Finalizer is that of another load
	// balancer, which keeps the Service; empty for none.
	Leaving   bool
	Finalizer string
	// Class is spec.loadBalancerClass, empty for none.
	Class  string
	Labels map[string]string
	// IPv4 and IPv6 are spec.ipFamilies, Policy spec.ipFamilyPolicy.
	IPv4, IPv6 bool
	Policy     FamilyPolicy
	// Requested are the addresses asked for, at most one per family, Pool the pool;
	// RequestedField and PoolField are where, for messages.
	Requested                 []netip.Addr
	Pool                      string
	RequestedField, PoolField string
	// SharingKey lets Services of the same key have one address; Selector is
	// spec.selector in one form.
	SharingKey string
	Selector   string
	// Given are all addresses of the status, whatever their ipMode, in the API's order.
	Given []netip.Addr
	// GivenNames are host names of the status, which load balancers of clouds give.
	GivenNames []string
	// Condition is our condition of the status as "Reason: message", empty for none.
	Condition string
}

// FamilyPolicy is a Service's spec.ipFamilyPolicy.
type FamilyPolicy uint8

// The policies of Kubernetes Services.
const (
	SingleStack FamilyPolicy = iota
	PreferDualStack
	RequireDualStack
)

// Range is the addresses from From to To, both included, of one family.
type Range struct{ From, To netip.Addr }

// Contains says whether the address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.From.BitLen() && r.From.Compare(a) <= 0 && a.Compare(r.To) <= 0
}

// String reads "192.0.2.1-192.0.2.9", or the address alone.
func (r Range) String() string {
	if r.From == r.To {
		return r.From.String()
	}
	return r.From.String() + "-" + r.To.String()
}

// Size is how many addresses the range has, at most 2^63-1.
func (r Range) Size() int64 {
	f, t := r.From.As16(), r.To.As16()
	var hi, lo [2]uint64
	for i := range 8 {
		hi[0], hi[1] = hi[0]<<8|uint64(f[i]), hi[1]<<8|uint64(t[i])
		lo[0], lo[1] = lo[0]<<8|uint64(f[i+8]), lo[1]<<8|uint64(t[i+8])
	}
	n := lo[1] - lo[0]
	if high := hi[1] - hi[0]; high > 1 || high == 1 && lo[1] >= lo[0] || n >= math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(n) + 1
}
