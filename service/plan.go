package service

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/model"
)

// Frontend is where clients connect to.
type Frontend struct {
	// Addr is a VIP, or for a node port the unspecified address of its family.
	Addr     netip.Addr
	Protocol model.Protocol
	Port     uint16
}

// IsNodePort reports whether the frontend is a port of every node.
func (f Frontend) IsNodePort() bool { return f.Addr.IsUnspecified() }

// String reads "TCP 10.96.0.1:80", or "TCP node port 30080".
func (f Frontend) String() string {
	if f.IsNodePort() {
		return fmt.Sprintf("%s node port %d", f.Protocol, f.Port)
	}
	return fmt.Sprintf("%s %s", f.Protocol, netip.AddrPortFrom(f.Addr, f.Port))
}

// Compare orders frontends by address, protocol and port.
func (f Frontend) Compare(g Frontend) int {
	return cmp.Or(f.Addr.Compare(g.Addr), cmp.Compare(f.Protocol, g.Protocol), cmp.Compare(f.Port, g.Port))
}

// FrontendPlan is a frontend with its backends. Every backend gets an equal share of new connections.
type FrontendPlan struct {
	Frontend Frontend
	// Port is the name of the Service's port, empty for the only one.
	Port string
	// Slots are the backends, sorted, without duplicates. They serve all clients, or with Split those in the cluster:
	// pods and processes of this node.
	Slots []netip.AddrPort
	// Outside are the backends for all other clients, with Split: those on this node.
	Outside []netip.AddrPort
	// External means that the frontend is for external clients (a node port, an external IP, an address of a load
	// balancer). They get the node's address as source, unless Split, which is externalTrafficPolicy Local.
	External, Split bool
	// Local means that the slots are those on this node: internalTrafficPolicy Local.
	Local bool
	// Balancer means that the frontend is an address of a load balancer.
	Balancer bool
	// Drop means that clients without a slot are dropped and not refused: there are endpoints, but a traffic policy
	// excludes them on this node.
	Drop bool
	// Affinity is how long a client keeps its slot; 0 for none.
	Affinity time.Duration
	// Sources restricts who can connect; empty for all clients.
	Sources []netip.Prefix
}

// Serves reports whether clients are sent to that backend.
func (e FrontendPlan) Serves(b netip.AddrPort) bool {
	return slices.Contains(e.Slots, b) || slices.Contains(e.Outside, b)
}

func (e FrontendPlan) equal(o FrontendPlan) bool {
	return e.Frontend == o.Frontend && e.Port == o.Port && e.Local == o.Local && e.Balancer == o.Balancer &&
		e.External == o.External && e.Split == o.Split && e.Drop == o.Drop && e.Affinity == o.Affinity &&
		slices.Equal(e.Slots, o.Slots) && slices.Equal(e.Outside, o.Outside) && slices.Equal(e.Sources, o.Sources)
}

// Plan is all that the data plane does for one Service.
type Plan struct {
	// VIPs are the addresses that belong to the Service alone: other ports of them are refused.
	VIPs []netip.Addr
	// Frontends are sorted, without duplicates.
	Frontends []FrontendPlan
	// Hairpin are the endpoints on this node: a connection of an endpoint to itself needs another source address, so
	// that answers return through the node.
	Hairpin []netip.Addr
	// HealthCheck is the port of every node at which load balancers query whether it has endpoints; 0 for none. The
	// data plane does not answer; a mode that includes the node's firewall admits the request.
	HealthCheck uint16
}

// Equal compares two plans.
func Equal(a, b Plan) bool {
	return a.HealthCheck == b.HealthCheck && slices.Equal(a.VIPs, b.VIPs) && slices.Equal(a.Hairpin, b.Hairpin) &&
		slices.EqualFunc(a.Frontends, b.Frontends, FrontendPlan.equal)
}

// Frontend returns the plan of a frontend; ok is false if there is none.
func (p Plan) Frontend(f Frontend) (e FrontendPlan, ok bool) {
	i, ok := slices.BinarySearchFunc(p.Frontends, f, func(e FrontendPlan, f Frontend) int {
		return e.Frontend.Compare(f)
	})
	if !ok {
		return FrontendPlan{}, false
	}
	return p.Frontends[i], true
}

// Keys returns the Services that a change affects.
func Keys(_ model.Snapshot, c model.Changes) []model.Name {
	return slices.Collect(maps.Keys(c.Of(model.ServiceKind)))
}

// Make plans one Service for the named node. ok is false if the data plane does nothing for it: it is deleted,
// headless, an ExternalName, or another proxy's. Problems name the parts that are left out.
func Make(snap model.Snapshot, key model.Name, node string) (p Plan, ok bool, problems []model.Problem) {
	return MakeWith(snap, key, Options{Node: node})
}

// MakeWith is Make with options. Claims that another Service wins (class, age, name), and claims that no Service can
// have, are left out and reported.
func MakeWith(snap model.Snapshot, key model.Name, opt Options) (p Plan, ok bool, problems []model.Problem) {
	svc, ok := snap.Service(key)
	if !ok || !isServed(svc) {
		return Plan{}, false, nil
	}
	c := contest{snap, svc, opt}
	p.VIPs, problems = c.vips()
	if len(p.VIPs) == 0 {
		return Plan{}, false, problems
	}
	self, _ := snap.Node(opt.Node)
	ends := collect(snap, svc, opt.Node, self, opt.PreferRemote && !svc.OtherDNS)
	for _, port := range svc.Ports {
		for _, vip := range p.VIPs {
			p.Frontends = append(p.Frontends, ends.internal(svc, port, vip))
		}
	}
	problems = append(problems, p.addNodePorts(c, ends)...)
	problems = append(problems, p.addExternal(c, ends, self)...)
	slices.SortStableFunc(p.Frontends, func(a, b FrontendPlan) int { return a.Frontend.Compare(b.Frontend) })
	p.Frontends, problems = unique(svc, p.Frontends, problems)
	problems = append(problems, p.bound(c)...)
	p.Hairpin = ends.local
	if p.HealthCheck = svc.HealthCheckPort; p.HealthCheck != 0 {
		if whose := c.reserved(model.TCP, p.HealthCheck); whose != "" {
			problems = append(problems, c.problem("spec.healthCheckNodePort", reservedFormat, p.HealthCheck,
				model.TCP, whose))
			p.HealthCheck = 0
		}
	}
	return p, true, problems
}

const reservedFormat = "%d/%s is a port of %s on the nodes; any other port of the range is allowed; it is not served"

// maxSlots bounds the backends of all frontends of one Service together: each is an element
// or a rule on every node.
const maxSlots = 131072

// bound leaves out endpoints if one Service has too many for its frontends: the same ones on all nodes.
func (p *Plan) bound(c contest) []model.Problem {
	n := 0
	for _, e := range p.Frontends {
		n += len(e.Slots) + len(e.Outside)
	}
	if n <= maxSlots {
		return nil
	}
	each := max(1, maxSlots/len(p.Frontends)/2)
	for i := range p.Frontends {
		e := &p.Frontends[i]
		e.Slots, e.Outside = e.Slots[:min(each, len(e.Slots))], e.Outside[:min(each, len(e.Outside))]
	}
	const format = "%d frontends with their endpoints are %d backends; allowed for one service: %d; " +
		"the first %d endpoints of each frontend are used"
	return []model.Problem{c.problem("spec.ports", format, len(p.Frontends), n, maxSlots, each)}
}

func (c contest) problem(field, format string, args ...any) model.Problem {
	return model.Problem{Kind: "Service", Object: c.svc.Name, Field: field, Reason: fmt.Sprintf(format, args...)}
}

// addNodePorts adds ports of the node.
func (p *Plan) addNodePorts(c contest, ends endpoints) (problems []model.Problem) {
	if c.svc.Type == model.ClusterIP {
		return nil
	}
	for i, port := range c.svc.Ports {
		if port.NodePort == 0 {
			continue
		}
		field := fmt.Sprintf("spec.ports[%d].nodePort", i)
		if whose := c.reserved(port.Protocol, port.NodePort); whose != "" {
			problems = append(problems, c.problem(field, reservedFormat, port.NodePort, port.Protocol, whose))
			continue
		}
		if o := c.nodePort(port.Protocol, port.NodePort); o != nil {
			problems = append(problems, c.problem(field,
				"%d/%s belongs to service %s, which comes first by age and name; it is not served",
				port.NodePort, port.Protocol, o.Name))
			continue
		}
		for _, vip := range p.VIPs {
			p.Frontends = append(p.Frontends, ends.external(c.svc, port, unspecified(vip), port.NodePort))
		}
	}
	return problems
}

// addExternal adds the addresses for external clients.
func (p *Plan) addExternal(c contest, ends endpoints, self *model.Node) (problems []model.Problem) {
	for i, a := range c.svc.LoadBalancerIPs {
		field := fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i)
		frontends, bad := c.external(p.VIPs, field, a, classBalancer, ends)
		for j := range frontends {
			frontends[j].Sources, frontends[j].Balancer = allowed(c.svc.SourceRanges, a, self), true
		}
		p.Frontends, problems = append(p.Frontends, frontends...), append(problems, bad...)
	}
	if n := len(c.svc.ExternalIPs); n > 0 && c.opt.NoExternalIPs {
		return append(problems, c.problem("spec.externalIPs",
			"%d addresses are not served: the setting service.externalIPs is false", n))
	}
	for i, a := range c.svc.ExternalIPs {
		frontends, bad := c.external(p.VIPs, fmt.Sprintf("spec.externalIPs[%d]", i), a, classExternal, ends)
		p.Frontends, problems = append(p.Frontends, frontends...), append(problems, bad...)
	}
	return problems
}

// external returns the frontends of one address for external clients.
func (c contest) external(
	vips []netip.Addr, field string, a netip.Addr, by class, ends endpoints,
) (out []FrontendPlan, problems []model.Problem) {
	if !slices.ContainsFunc(vips, func(v netip.Addr) bool { return v.Is6() == a.Is6() }) {
		return nil, []model.Problem{c.problem(field, "%s is not of a family of the service (spec.ipFamilies)", a)}
	}
	if why := c.address(a); why != "" {
		return nil, []model.Problem{c.problem(field, "%s; it is not served", why)}
	}
	if o := c.balancer(a); o != nil && by == classExternal {
		return nil, []model.Problem{c.problem(field,
			"%s is the load balancer's address of service %s, in another namespace; a Service of that namespace, "+
				"or one of type LoadBalancer with the same sharing key may use it; it is not served", a, o.Name)}
	}
	for _, port := range c.svc.Ports {
		if o := c.port(a, port, by); o != nil {
			theirs, _ := classOf(o, a)
			problems = append(problems, c.problem(field,
				"port %d/%s of %s belongs to service %s (%s): %s; it is not served",
				port.Port, port.Protocol, a, o.Name, theirs, why(theirs, by)))
			continue
		}
		out = append(out, ends.external(c.svc, port, a, port.Port))
	}
	return out, problems
}

func why(theirs, mine class) string {
	if theirs < mine {
		return theirs.String() + " comes before " + mine.String()
	}
	return "it comes first by age and name"
}

// allowed returns the ranges of the address's family; none admits all clients. A node within a range may use the
// address as its own, too: if it is one of the node's addresses, the kernel takes it as source.
func allowed(ranges []netip.Prefix, to netip.Addr, self *model.Node) (out []netip.Prefix) {
	for _, r := range ranges {
		if r.Addr().Is6() != to.Is6() {
			continue
		}
		if r.Bits() == 0 {
			return nil
		}
		out = append(out, r)
	}
	own := func(r netip.Prefix) bool { return self != nil && slices.ContainsFunc(self.InternalIPs, r.Contains) }
	if slices.ContainsFunc(out, own) {
		out = append(out, netip.PrefixFrom(to, to.BitLen()))
	}
	return out
}

// vips returns the Service's addresses, without those that no Service can have, and those that another one owns.
func (c contest) vips() (good []netip.Addr, problems []model.Problem) {
	for i, a := range c.svc.ClusterIPs {
		field := fmt.Sprintf("spec.clusterIPs[%d]", i)
		if why := notGlobal(a); why != "" {
			problems = append(problems, c.problem(field, "%s", why))
			continue
		}
		if o := c.clusterIP(a); o != nil {
			problems = append(problems, c.problem(field,
				"%s belongs to service %s, which comes first by age and name; it is not served", a, o.Name))
			continue
		}
		good = append(good, a)
	}
	return good, problems
}

// unique keeps the first of several plans for one frontend.
func unique(svc *model.Service, sorted []FrontendPlan, problems []model.Problem) ([]FrontendPlan, []model.Problem) {
	out := sorted[:0]
	for _, e := range sorted {
		if n := len(out); n > 0 && out[n-1].Frontend == e.Frontend {
			problems = append(problems, model.Problem{Kind: "Service", Object: svc.Name, Field: "spec.ports",
				Reason: fmt.Sprintf("%s is a duplicate; the first is served", e.Frontend)})
			continue
		}
		out = append(out, e)
	}
	return out, problems
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
