package iptables

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Fake is a Conn in memory that records texts and has faults on demand. As the kernel does, it refuses rules of missing
// chains, and dropping chains that a rule leads to.
type Fake struct {
	mu     sync.Mutex
	tables map[Family]map[string]Table
	// Fail, if set, is asked before every text.
	Fail func(f Family, text string) error
	// Texts are those that were applied.
	Texts []string
}

var _ Conn = (*Fake)(nil)

// NewFake makes one with the kernel's own chains.
func NewFake() *Fake {
	out := &Fake{tables: map[Family]map[string]Table{}}
	for _, f := range Families() {
		out.tables[f] = map[string]Table{
			"nat":    {"PREROUTING": nil, "INPUT": nil, "OUTPUT": nil, "POSTROUTING": nil},
			"filter": {"INPUT": nil, "FORWARD": nil, "OUTPUT": nil},
			"mangle": {"PREROUTING": nil, "INPUT": nil, "FORWARD": nil, "OUTPUT": nil, "POSTROUTING": nil},
		}
	}
	return out
}

// Flavour implements Conn.
func (f *Fake) Flavour() Flavour { return NFT }

// Has implements Conn.
func (f *Fake) Has(_ context.Context, fam Family, table string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tables[fam][table] != nil, nil
}

// Read implements Conn.
func (f *Fake) Read(_ context.Context, fam Family, table string) (Table, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return clone(f.tables[fam][table]), nil
}

// Peek is Read for use in Fail, which runs while the Fake is locked. The caller must not change the result.
func (f *Fake) Peek(fam Family, table string) Table { return f.tables[fam][table] }

// Tidy does nothing: no table of a Fake is made by restoring.
func (f *Fake) Tidy(context.Context, Family, string) error { return nil }

// Watch implements Conn: nobody else is here.
func (f *Fake) Watch(context.Context, func(table, chain string) bool) (<-chan struct{}, error) {
	return nil, nil
}

func clone(t Table) Table {
	out := Table{}
	for c, rules := range t {
		out[c] = slices.Clone(rules)
	}
	return out
}

// Restore implements Conn.
func (f *Fake) Restore(_ context.Context, fam Family, text []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Fail != nil {
		if err := f.Fail(fam, string(text)); err != nil {
			return err
		}
	}
	// Table by table, each whole or not at all.
	for part := range strings.SplitAfterSeq(string(text), "COMMIT\n") {
		head, lines, _ := strings.Cut(part, "\n")
		if head == "" {
			continue
		}
		name := strings.TrimPrefix(head, "*")
		t := clone(f.tables[fam][name])
		for line := range strings.Lines(strings.TrimSuffix(lines, "COMMIT\n")) {
			if err := t.do(strings.TrimSuffix(line, "\n")); err != nil {
				return fmt.Errorf("fake: %s: %w", line, err)
			}
		}
		f.tables[fam][name] = t
	}
	f.Texts = append(f.Texts, string(text))
	return nil
}

func (t Table) do(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	chain, rule, _ := strings.Cut(rest, " ")
	if name, ok := strings.CutPrefix(word, ":"); ok {
		t[name] = nil
		return nil
	}
	if _, ok := t[chain]; !ok {
		return fmt.Errorf("no chain %s", chain)
	}
	if _, target, ok := strings.Cut(rule, "-j KUBE-"); ok && word != "-D" {
		if _, ok := t["KUBE-"+strings.Fields(target)[0]]; !ok {
			return fmt.Errorf("no chain KUBE-%s", target)
		}
	}
	switch word {
	case "-A":
		t[chain] = append(t[chain], rule)
	case "-I":
		t[chain] = slices.Insert(t[chain], 0, strings.TrimPrefix(rule, "1 "))
	case "-D":
		i := slices.Index(t[chain], rule)
		if i < 0 {
			return fmt.Errorf("no such rule")
		}
		t[chain] = slices.Delete(t[chain], i, i+1)
	case "-X":
		for _, c := range slices.Sorted(maps.Keys(t)) {
			for _, r := range t[c] {
				if strings.HasSuffix(r, "-j "+chain) {
					return fmt.Errorf("chain %s leads there", c)
				}
			}
		}
		delete(t, chain)
	default:
		return fmt.Errorf("not understood")
	}
	return nil
}
