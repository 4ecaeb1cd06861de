package iptables

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// Change is what is to become of one table.
type Change struct {
	Table string
	// Set replaces the rules of chains, which are made when they are not there.
	Set map[string][]string
	// Drop removes chains, which nothing may lead to any more.
	Drop []string
	// Insert puts rules first in chains that are not ours, Delete takes rules out.
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
