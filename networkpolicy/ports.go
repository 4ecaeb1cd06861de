package networkpolicy

import (
	"cmp"
	"slices"

	"wayleave.dev/model"
)

// portName is a port of a pod by its name, as a policy says it.
type portName struct {
	protocol model.Protocol
	name     string
}

func (n portName) compare(o portName) int {
	return cmp.Or(cmp.Compare(n.protocol, o.protocol), cmp.Compare(n.name, o.name))
}

// Empty says that no packet is in the set.
func (p Ports) Empty() bool { return !p.All && len(p.Ranges) == 0 }

// union is what is in one of the sets. It shares memory with them where it can.
func union(a, b Ports) Ports {
	switch {
	case a.All || b.Empty() || a.Equal(b):
		return a
	case b.All || a.Empty():
		return b
	}
	return normal(slices.Concat(a.Ranges, b.Ranges))
}

// unionOf is what is in one of many sets, in one pass.
func unionOf(sets []Ports) (out Ports) {
	if len(sets) <= 2 {
		for _, s := range sets {
			out = union(out, s)
		}
		return out
	}
	var list []PortRange
	for _, s := range sets {
		if s.All {
			return s
		}
		list = append(list, s.Ranges...)
	}
	return normal(list)
}

// normal sorts the list in place, and joins ranges that touch.
func normal(list []PortRange) Ports {
	slices.SortFunc(list, func(a, b PortRange) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.From, b.From))
	})
	out := list[:0]
	for _, r := range list {
		if n := len(out) - 1; n >= 0 && out[n].Protocol == r.Protocol && int(r.From) <= int(out[n].To)+1 {
			out[n].To = max(out[n].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return Ports{Ranges: out}
}

// rulePorts splits the ports of a rule into numbers and names, which only a pod can resolve.
func rulePorts(r model.PolicyRule) (numbers Ports, names []portName) {
	if r.AnyPort {
		return Ports{All: true}, nil
	}
	var list []PortRange
	for _, p := range r.Ports {
		switch {
		case p.Name != "":
			names = append(names, portName{p.Protocol, p.Name})
		case p.From <= p.To:
			list = append(list, PortRange{p.Protocol, p.From, p.To})
		}
	}
	return normal(list), names
}

// resolve returns the numbers of the names at a pod with these ports. If several containers use one name for several
// numbers, all count.
func resolve(names []portName, ports []model.NamedPort) Ports {
	var list []PortRange
	for _, n := range names {
		for _, p := range ports {
			if p.Name == n.name && p.Protocol == n.protocol {
				list = append(list, PortRange{p.Protocol, p.Port, p.Port})
			}
		}
	}
	return normal(list)
}
