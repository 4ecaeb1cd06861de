package ingress

import "wayleave.dev/model"

// hostIndex finds the parts of an Ingress that concern a host: an Ingress can have thousands, and each of its hosts is
// merged by itself.
type hostIndex struct {
	// rules are indices in Rules by host, tls those in TLS by each of the entry's hosts.
	rules, tls map[string][]int
	// open are the entries of TLS without hosts.
	open []int
}

func indexHosts(i *model.Ingress) hostIndex {
	x := hostIndex{rules: make(map[string][]int, len(i.Rules)), tls: map[string][]int{}}
	for n, r := range i.Rules {
		x.rules[r.Host] = append(x.rules[r.Host], n)
	}
	for n, t := range i.TLS {
		if len(t.Hosts) == 0 {
			x.open = append(x.open, n)
		}
		for _, h := range t.Hosts {
			if list := x.tls[h]; len(list) == 0 || list[len(list)-1] != n {
				x.tls[h] = append(list, n)
			}
		}
	}
	return x
}

// hasRule reports whether the Ingress routes the host by its own name.
func (p *Planner) hasRule(snap model.Snapshot, i *model.Ingress, host string) bool {
	return host == "" && len(i.Rules) == 0 || len(p.options(snap, i).hosts.rules[host]) > 0
}
