package ingress

import (
	"slices"

	"wayleave.dev/model"
	"wayleave.dev/proxy/table"
)

// isLeaving says whether the Ingress is being deleted, alone or with its namespace. The
// namespace's Services and Secrets may be gone before.
func (p *Planner) isLeaving(i *model.Ingress) bool { return i.Leaving || p.leaving[i.Name.Namespace] }

// namespaces touches all hosts of namespaces whose deletion began (or that are there anew).
func (r *round) namespaces(changed map[string]struct{}) {
	for ns := range changed {
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

// claimants are the Ingresses that touch a host. Those that are being deleted are among them
// only while no other one routes the host.
func (p *Planner) claimants(snap model.Snapshot, host string) (out []*model.Ingress) {
	stays := false
	for n := range p.hosts[host] {
		i := p.ours[n]
		out = append(out, i)
		if !stays && !p.isLeaving(i) {
			o := p.options(snap, i)
			stays = o.canary == nil && (hasRule(i, host) || slices.Contains(o.aliases, host))
		}
	}
	if stays {
		out = slices.DeleteFunc(out, p.isLeaving)
	}
	return out
}

// isVacant says whether a path leads nowhere since its Service does not exist. A path that keeps
// requests out, or answers by itself, is not vacant.
func (m *merger) isVacant(i *model.Ingress, p *table.Path, b model.IngressBackend) bool {
	if p.Backend != "" || p.Guarded() || p.Options != nil && p.Options.Redirect != "" || b.Service == "" {
		return false
	}
	_, exists := m.snap.Service(model.Name{Namespace: i.Name.Namespace, Name: b.Service})
	return !exists
}

// succeeds says whether the Ingress serves a place in place of its owner, whose Service does not
// exist. Only the owner's namespace and the host's do: no other may wait for that.
func (m *merger) succeeds(i *model.Ingress, where place, vacant bool) bool {
	by := m.owner[where]
	return m.vacant[where] && !vacant && by != i && (by.Name.Namespace == i.Name.Namespace || !m.foreign(i))
}

// leave tells the owner of a place that the next one serves it.
func (m *merger) leave(by, next *model.Ingress, where place) {
	p := &m.out.Paths[m.at[where]]
	field := fieldOf(p) + ".backend.service"
	m.problems[by.Name] = slices.DeleteFunc(m.problems[by.Name], func(q model.Problem) bool { return q.Field == field })
	m.bad(by, field, "the Service does not exist; Ingress %s, which comes next, serves %s%s", next.Name, m.hostText(), p.Path)
}
