package nft

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Ruleset lists all rules and set elements of the namespace, those of others too, as the kernel has them: expressions
// with their operands, and keys in hexadecimal. cut says that there is more than limit bytes.
func (k *Kernel) Ruleset(ctx context.Context, limit int) (text string, cut bool, err error) {
	c, err := k.conn(deadline(ctx))
	if err != nil {
		return "", false, err
	}
	tables, err := c.ListTables()
	if err != nil {
		return "", false, fmt.Errorf("nftables: tables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return "", false, fmt.Errorf("nftables: chains: %w", err)
	}
	b := &boundedText{limit: limit}
	for _, t := range tables {
		b.line("table family=%d %s", t.Family, t.Name)
		for _, ch := range chains {
			if ch.Table.Name != t.Name || ch.Table.Family != t.Family || b.cut {
				continue
			}
			rules, err := c.GetRules(t, ch)
			b.line("  chain %s: %s", ch.Name, summaryOf(ch, rules, err))
			for _, r := range rules {
				b.line("    %d: %s", r.Handle, exprText(r.Exprs))
			}
		}
		sets, err := c.GetSets(t)
		if err != nil {
			b.line("  sets: %v", err) // the table may have gone meanwhile
		}
		for _, s := range sets {
			if !b.cut {
				b.set(c, s)
			}
		}
	}
	return b.String(), b.cut, nil
}

// boundedText takes lines as long as they fit.
type boundedText struct {
	strings.Builder
	limit int
	cut   bool
}

func (b *boundedText) line(format string, args ...any) {
	if b.cut {
		return
	}
	text := fmt.Sprintf(format, args...)
	if b.cut = b.Len()+len(text)+1 > b.limit; !b.cut {
		b.WriteString(text + "\n")
	}
}

func (b *boundedText) set(c *nftables.Conn, s *nftables.Set) {
	b.line("  set %s: key %s, map %v, interval %v", s.Name, s.KeyType.Name, s.IsMap, s.Interval)
	elements, err := c.GetSetElements(s)
	if err != nil {
		b.line("    elements: %v", err)
	}
	for _, e := range elements {
		text := hex.EncodeToString(e.Key)
		if len(e.KeyEnd) > 0 {
			text += "-" + hex.EncodeToString(e.KeyEnd)
		}
		if e.IntervalEnd {
			text += " end"
		}
		if len(e.Val) > 0 {
			text += " : " + hex.EncodeToString(e.Val)
		}
		if e.VerdictData != nil {
			text += " : " + exprText([]expr.Any{e.VerdictData})
		}
		b.line("    %s", text)
	}
}

// exprText prints expressions as NAME{OPERANDS}, in the order in which the kernel evaluates them.
func exprText(all []expr.Any) string {
	var parts []string
	for _, e := range all {
		name := strings.TrimPrefix(fmt.Sprintf("%T", e), "*expr.")
		parts = append(parts, name+strings.TrimPrefix(fmt.Sprintf("%+v", e), "&"))
	}
	return strings.Join(parts, " ")
}
