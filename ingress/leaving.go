package ingress

import (
	"slices"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
)

// isLeaving reports whether the Ingress is being deleted, alone or with its namespace. The namespace's Services and
// Secrets may be gone earlier.
func (p *Planner) isLeaving(i *model.Ingress) bool { return i.Leaving || p.leaving[i.Name.Namespace] }

// namespaces marks all hosts of namespaces whose deletion has begun, or that were created again.
func (r *round) namespaces(changed map[model.Name]struct{}) {
	for name := range changed {
		ns := name.Name
		n, ok := r.snap.Namespace(ns)
		if leaving := ok && n.Leaving; leaving == r.p.leaving[ns] {
			continue
		} else if leaving {
			r.p.leaving[ns] = true
		} else {
			delete(r.p.leaving, ns)
		}
		of := map[model.Name]bool{}
		for name := range r.p.touched {
			if name.Namespace == ns {
				of[name] = true
			}
		}
		r.again(of)
	}
}

// claimants returns the Ingresses that use a host. Those that are being deleted are included only while no other one
// routes the host.
func (p *Planner) claimants(snap model.Snapshot, host string) (out []*model.Ingress) {
	stays := false
	for n := range p.hosts[host] {
		i := p.ours[n]
		out = append(out, i)
		if !stays && !p.isLeaving(i) {
			o := p.options(snap, i)
			stays = o.canary == nil && (p.hasRule(snap, i, host) || slices.Contains(o.aliases, host))
		}
	}
	if stays {
		out = slices.DeleteFunc(out, p.isLeaving)
	}
	return out
}

// isServed reports whether a path leads to a Service, has a guard, or responds by itself.
func isServed(p *schema.Path) bool {
	return p.Backend != "" || p.Guarded() || p.Options != nil && p.Options.Redirect != ""
}

// isVacant reports whether a path leads nowhere because its Service does not exist.
func (m *merger) isVacant(i *model.Ingress, p *schema.Path, b model.IngressBackend) bool {
	if isServed(p) || b.Service == "" {
		return false
	}
	_, exists := m.snap.Service(model.Name{Namespace: i.Name.Namespace, Name: b.Service})
	return !exists
}

// succeeds reports whether the Ingress serves a path in place of its owner, whose Service does not exist. Only
// Ingresses of the owner's namespace and the host's do: no other namespace can wait for that.
func (m *merger) succeeds(i *model.Ingress, where place, p *schema.Path) bool {
	by := m.owner[where]
	return m.vacant[where] && isServed(p) && by != i && (by.Name.Namespace == i.Name.Namespace || !m.foreign(i))
}

// leave reports to the owner of a path that the next Ingress serves it.
func (m *merger) leave(by, next *model.Ingress, where place) {
	p := &m.out.Paths[m.at[where]]
	m.told(by, fieldOf(p)+".backend.service", "the Service does not exist; Ingress %s serves %s%s in its place",
		next.Name, m.hostText(), p.Path)
}

// told replaces the problem of an Ingress about a field.
func (m *merger) told(i *model.Ingress, field, format string, args ...any) {
	k, list := problemField{i.Name, field}, m.problems[i.Name]
	for _, n := range m.byField[k] {
		delete(m.seen, list[n])
		list[n] = model.Problem{} // left out at the end of the merge
	}
	delete(m.byField, k)
	m.bad(i, field, format, args...)
}

// succeedsDefault is succeeds for the default backend of the host.
func (m *merger) succeedsDefault(i *model.Ingress) bool {
	o := m.p.options(m.snap, i)
	p := schema.Path{Closed: o.closed != "" || m.shut[i], Options: &o.table}
	p.Backend, _ = resolve(m.snap, i.Name.Namespace, *i.Default)
	if !m.vacantDefault || !isServed(&p) {
		return false
	}
	return m.byDefault.Name.Namespace == i.Name.Namespace || !m.foreign(i)
}
