package service

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/model"
)

// Text prints plans for people and for golden files, in order of names.
func Text(plans map[model.Name]Plan) string {
	var b strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(plans), model.Name.Compare) {
		fmt.Fprintf(&b, "service %s\n", k)
		plans[k].text(&b)
	}
	return b.String()
}

func (p Plan) text(b *strings.Builder) {
	for _, a := range p.VIPs {
		fmt.Fprintf(b, "  vip %s\n", a)
	}
	for _, e := range p.Frontends {
		e.text(b)
	}
	if p.HealthCheck != 0 {
		fmt.Fprintf(b, "  health checks at port %d\n", p.HealthCheck)
	}
	for _, a := range p.Hairpin {
		fmt.Fprintf(b, "  on this node %s\n", a)
	}
}

func (e FrontendPlan) text(b *strings.Builder) {
	fmt.Fprintf(b, "  %s", e.Frontend)
	if e.Affinity > 0 {
		fmt.Fprintf(b, ", sticky for %s", e.Affinity)
	}
	if len(e.Sources) > 0 {
		fmt.Fprintf(b, ", only from %v", e.Sources)
	}
	if e.Split {
		b.WriteString(", inside")
	}
	list := func(slots []netip.AddrPort) {
		switch {
		case len(slots) == 0 && e.Drop:
			b.WriteString(": dropped, no endpoints here")
		case len(slots) == 0:
			b.WriteString(": refused, no endpoints")
		}
		for i, s := range slots {
			sep := ","
			if i == 0 {
				sep = " →"
			}
			fmt.Fprintf(b, "%s %s", sep, s)
		}
		b.WriteByte('\n')
	}
	list(e.Slots)
	if e.Split {
		fmt.Fprintf(b, "  %s, outside", e.Frontend)
		list(e.Outside)
	}
}
