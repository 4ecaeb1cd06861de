package nft

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Hook is where a base chain sees packets.
type Hook struct {
	Type     string // "filter" or "nat"
	Hook     string // "prerouting", "input", "forward", "output", "postrouting"
	Priority int32
}

// number is the kernel's number of the hook (enum nf_inet_hooks).
func (h Hook) number() uint32 {
	return uint32(slices.Index([]string{"prerouting", "input", "forward", "output", "postrouting"}, h.Hook))
}

// Chain is a list of rules; with a Hook it is entered from the network stack.
type Chain struct {
	Name  string
	Hook  *Hook
	Rules []Rule
	// OnDemand chains of a Table are made and dropped as a Batch says, and not with its base, so that an unused hook
	// costs nothing.
	OnDemand bool
}

// Table is the fixed part of a table of one family. The elements of its sets, and chains made as needed, are separate.
type Table struct {
	Family Family
	Name   string
	Sets   []Set
	Chains []Chain
	// Made says what the sets are that are made as needed, by their names; nil when
	// there are none.
	Made func(name string) (Set, bool)
}

// Set returns the set of that name.
func (t Table) set(name string) (Set, error) {
	for _, s := range t.Sets {
		if s.Name == name {
			return s, nil
		}
	}
	if t.Made != nil {
		if s, ok := t.Made(name); ok {
			return s, nil
		}
	}
	return Set{}, fmt.Errorf("table %s %s has no set %s", t.Family, t.Name, name)
}

// Text prints the table as nft text, with elements by set and more chains.
func (t Table) Text(elements map[string][]Element, more []Chain) string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", t.Family, t.Name)
	for _, s := range t.Sets {
		list := slices.Clone(elements[s.Name])
		slices.SortFunc(list, func(a, b Element) int {
			return cmp.Or(strings.Compare(a.Key, b.Key),
				strings.Compare(a.Data, b.Data))
		})
		s.text(&b, t.Family, list)
	}
	fixed := slices.DeleteFunc(slices.Clone(t.Chains), func(c Chain) bool { return c.OnDemand })
	for _, c := range slices.Concat(fixed, more) {
		c.text(&b, t.Family)
	}
	b.WriteString("}\n")
	return b.String()
}

func (c Chain) text(b *strings.Builder, f Family) {
	fmt.Fprintf(b, "\tchain %s {\n", c.Name)
	if c.Hook != nil {
		fmt.Fprintf(b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Hook.Type, c.Hook.Hook, c.Hook.Priority)
	}
	for _, r := range c.Rules {
		var parts []string
		for _, s := range r {
			parts = append(parts, s.text(f))
		}
		fmt.Fprintf(b, "\t\t%s\n", strings.Join(parts, " "))
	}
	b.WriteString("\t}\n")
}
