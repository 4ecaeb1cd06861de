package nft

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/nftables"
)

// Summary lists all tables of the namespace, those of others too: chains with their hooks and policies, how many rules
// each has, and the sets. It has no elements, of which there may be 100,000.
func (k *Kernel) Summary(ctx context.Context) (string, error) {
	c, err := k.conn(deadline(ctx))
	if err != nil {
		return "", err
	}
	tables, err := c.ListTables()
	if err != nil {
		return "", fmt.Errorf("nftables: tables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return "", fmt.Errorf("nftables: chains: %w", err)
	}
	var b strings.Builder
	for _, t := range tables {
		fmt.Fprintf(&b, "table family=%d %s\n", t.Family, t.Name)
		for _, ch := range chains {
			if ch.Table.Name != t.Name || ch.Table.Family != t.Family {
				continue
			}
			rules, err := c.GetRules(t, ch)
			fmt.Fprintf(&b, "  chain %s: %s\n", ch.Name, summaryOf(ch, rules, err))
		}
		sets, err := c.GetSets(t)
		if err != nil {
			fmt.Fprintf(&b, "  sets: %v\n", err) // the table may have gone meanwhile
		}
		for _, s := range sets {
			fmt.Fprintf(&b, "  set %s: key %s, map %v, interval %v\n", s.Name, s.KeyType.Name, s.IsMap, s.Interval)
		}
	}
	return b.String(), nil
}

func summaryOf(ch *nftables.Chain, rules []*nftables.Rule, err error) string {
	text := fmt.Sprintf("%d rules", len(rules))
	if err != nil {
		text = err.Error()
	}
	if ch.Hooknum != nil && ch.Priority != nil {
		text += fmt.Sprintf(", hook %d, priority %d", *ch.Hooknum, *ch.Priority)
	}
	if ch.Policy != nil {
		text += fmt.Sprintf(", policy %d", *ch.Policy)
	}
	return text
}
