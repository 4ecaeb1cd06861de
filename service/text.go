package service

import (
	"fmt"
	"maps"
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
	for _, e := range p.Entries {
		fmt.Fprintf(b, "  %s", e.Frontend)
		if len(e.Slots) == 0 {
			b.WriteString(": refused, no endpoints")
		}
		for i, s := range e.Slots {
			sep := ","
			if i == 0 {
				sep = " →"
			}
			fmt.Fprintf(b, "%s %s", sep, s)
		}
		b.WriteByte('\n')
	}
	for _, a := range p.Hairpin {
		fmt.Fprintf(b, "  on this node %s\n", a)
	}
}
