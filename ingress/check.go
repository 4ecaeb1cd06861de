package ingress

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// Checked is the result for one Ingress.
type Checked struct {
	Ingress *model.Ingress
	Ours    bool
	// Problems are its problems, in order of fields as they were found.
	Problems []model.Problem
	// Backends are the Services and ports of its paths, as "namespace/service:port".
	Backends []string
}

// Check plans a complete snapshot for a point in time, in order of names of Ingresses.
func Check(snap model.Snapshot, s Settings, now time.Time) []Checked {
	p := NewPlanner(s)
	p.now = func() time.Time { return now }
	var all model.Changes
	for i := range snap.Ingresses() {
		all.Add(model.IngressKind, i.Name)
	}
	p.Keys(snap, all)
	var out []Checked
	for i := range snap.Ingresses() {
		c := Checked{Ingress: i, Ours: s.Ours(snap, i)}
		if t := p.touched[i.Name]; t != nil {
			c.Problems = p.problems(snap, i.Name)
			for n, b := range s.backendsOf(i) {
				if key, _ := resolve(snap, n.Namespace, b); key != "" && !slices.Contains(c.Backends, key) {
					c.Backends = append(c.Backends, key)
				}
			}
		}
		out = append(out, c)
	}
	return out
}

// Routing is the proxy's routing table.
type Routing struct {
	Table    *table.Table
	Backends map[string]*schema.Backend
}

// Route plans a complete snapshot for a point in time.
func Route(snap model.Snapshot, s Settings, now time.Time) Routing {
	p := NewPlanner(s)
	p.now = func() time.Time { return now }
	var all model.Changes
	for i := range snap.Ingresses() {
		all.Add(model.IngressKind, i.Name)
	}
	hosts, out := map[string]*schema.Host{}, Routing{Backends: map[string]*schema.Backend{}}
	for _, k := range p.Keys(snap, all) {
		plan, ok, _ := p.Plan(snap, k)
		switch {
		case ok && plan.Host != nil:
			hosts[k.Name] = plan.Host
		case ok && plan.Backend != nil:
			out.Backends[k.Name] = plan.Backend
		}
	}
	out.Table = table.Make(nil, hosts)
	return out
}

// ServiceKey returns the key of a Service's port, also of a missing one.
func ServiceKey(snap model.Snapshot, namespace string, b model.IngressBackend) string {
	if key, _ := resolve(snap, namespace, b); key != "" {
		return key
	}
	port := b.PortName
	if port == "" {
		port = fmt.Sprint(b.Port)
	}
	return namespace + "/" + b.Service + ":" + port
}

// Endpoints returns the endpoints of a backend by its key; nil if there are none.
func Endpoints(snap model.Snapshot, key string) (out []netip.AddrPort) {
	service, number, ok := parseBackend(key)
	if !ok {
		return nil
	}
	if b, ok := makeBackend(snap, service, number.port); ok {
		for _, e := range b.Endpoints {
			out = append(out, e.Addr)
		}
	}
	return out
}
