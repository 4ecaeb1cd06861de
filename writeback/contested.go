package writeback

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"wayleave.dev/loadbalancer"
	"wayleave.dev/model"
)

// ReasonContested is the reason of a Service whose addresses another controller also writes.
const ReasonContested = "Contested"

// A running load balancer writes its addresses back. After maxEvictions within evictionsFor the Service keeps them.
const (
	maxEvictions = 3
	evictionsFor = time.Hour
)

// eviction counts how often addresses of another load balancer were replaced. Addresses that the writer allocated do
// not count.
type eviction struct {
	addrs []netip.Addr
	count int
	since time.Time
}

// isContested reports whether the addresses came back too often. The nil eviction has none.
func (e *eviction) isContested(replaced []netip.Addr) bool {
	return e != nil && e.count >= maxEvictions && time.Since(e.since) <= evictionsFor && e.overlaps(replaced)
}

func (e *eviction) overlaps(addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(e.addrs, a) })
}

// noteEvicted records what a write has replaced.
func (b *Balancer) noteEvicted(n model.Name, d loadbalancer.Decision) {
	e := b.evicted[n]
	if e != nil {
		e.addrs = slices.DeleteFunc(e.addrs, func(a netip.Addr) bool { return slices.Contains(d.Addrs, a) })
	}
	switch {
	case len(d.Replaced) == 0:
	case e == nil || !e.overlaps(d.Replaced) || time.Since(e.since) > evictionsFor:
		b.evicted[n] = &eviction{addrs: slices.Clone(d.Replaced), count: 1, since: time.Now()}
	default:
		e.count++
	}
}

// contested lets a Service keep the addresses that another load balancer writes back.
func contested(s *model.Service, d loadbalancer.Decision) loadbalancer.Decision {
	p := model.Problem{Kind: "Service", Object: s.Name, Field: "status.loadBalancer.ingress", Reason: fmt.Sprintf(
		"another controller writes back %s instead of %s; stop it, or give it the Service by "+
			"spec.loadBalancerClass; the Service keeps its addresses",
		join(d.Replaced), join(d.Addrs))}
	return loadbalancer.Decision{Addrs: s.LoadBalancer.Given, Condition: ReasonContested + ": " + p.Reason,
		Problems: []model.Problem{p}}
}

func join(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}
