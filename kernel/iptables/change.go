package iptables

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// Change is a change of one table.
type Change struct {
	Table string
	// Set replaces the rules of chains, and makes chains that are missing.
	Set map[string][]string
	// Drop removes chains. No rule may lead to them any more.
	Drop []string
	// Insert puts rules in front of foreign chains, and Delete removes rules from them.
	Insert, Delete []Rule
}

// Rule is a rule of a chain.
type Rule struct{ Chain, Rule string }

// Empty says that nothing changes.
func (c Change) Empty() bool { return len(c.Set)+len(c.Drop)+len(c.Insert)+len(c.Delete) == 0 }

// Text is what iptables-restore --noflush reads. Equal changes print to equal text.
func (c Change) Text() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "*%s\n", c.Table)
	chains := slices.Sorted(maps.Keys(c.Set))
	drop := slices.Sorted(slices.Values(c.Drop))
	for _, name := range chains {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
	}
	for _, name := range drop {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
	}
	for _, r := range c.Delete {
		fmt.Fprintf(&b, "-D %s %s\n", r.Chain, r.Rule)
	}
	for _, name := range chains {
		for _, r := range c.Set[name] {
			b.WriteString("-A ")
			b.WriteString(name)
			b.WriteByte(' ')
			b.WriteString(r)
			b.WriteByte('\n')
		}
	}
	for _, r := range c.Insert {
		fmt.Fprintf(&b, "-I %s 1 %s\n", r.Chain, r.Rule)
	}
	for _, name := range drop {
		fmt.Fprintf(&b, "-X %s\n", name)
	}
	b.WriteString("COMMIT\n")
	return b.Bytes()
}
