package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"wayleave.dev/kernel/iptables"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
)

// frozen are the rules in the kernel of a Service whose new rules it refuses. The previous version stays active, and no
// rule of another Service is removed because of the refused one.
type frozen struct {
	shared map[place][]string  // in chains of many Services
	own    map[string][]string // chains that these lead to
}

// isFrozen reports whether one of the keys has rules that were refused: the tables must be read for it.
func (m *Mode) isFrozen(set map[model.Name]service.Plan, del []model.Name) bool {
	for _, f := range iptables.Families() {
		for k := range m.frozen[f] {
			if _, ok := set[k]; ok || slices.Contains(del, k) {
				return true
			}
		}
	}
	return false
}

// sharedOf returns the rules of a Service in chains that Services share.
func (m *Mode) sharedOf(f iptables.Family, k model.Name, p service.Plan) map[place][]string {
	if fr, ok := m.frozen[f][k]; ok {
		return fr.shared
	}
	return rulesByPlace(k, p, f)
}

// ownOf returns the chains that belong to one Service alone.
func (m *Mode) ownOf(f iptables.Family, k model.Name, p service.Plan) map[string][]string {
	if fr, ok := m.frozen[f][k]; ok {
		return fr.own
	}
	out := map[string][]string{}
	own(k, p, m.local, func(g iptables.Family, chain string, rules []string) {
		if g == f {
			out[chain] = rules
		}
	})
	return out
}

// settle changes a family's tables to the plans in force. If the kernel refuses, the Services with changes are frozen
// in their present state, and thawed in halves to find those that the kernel refuses. At no time is a rule of another
// Service missing.
func (m *Mode) settle(
	ctx context.Context, f iptables.Family, have map[string]iptables.Table, failed reconcile.KeyErrors[model.Name],
) error {
	err := m.restore(ctx, compare(f, have, m.tables(f, m.owners.Plans)))
	if err == nil || ctx.Err() != nil {
		return err
	}
	touched := m.touched(f, have)
	have, bad := m.read(ctx, f) // tables before the refused one have changed already
	if bad != nil {
		return errors.Join(err, bad)
	}
	m.frozen[f] = freeze(f, have, touched)
	if bad := m.restore(ctx, compare(f, have, m.tables(f, m.owners.Plans))); bad != nil {
		return errors.Join(err, bad)
	}
	refused := reconcile.KeyErrors[model.Name]{}
	err = reconcile.Halve(touched, refused, func(keys []model.Name) error { return m.thaw(ctx, f, keys) },
		func(err error) bool { return unknown(ctx, err) })
	maps.Copy(failed, refused)
	return err
}

// thaw applies the plans of some frozen Services. A refused change is undone.
func (m *Mode) thaw(ctx context.Context, f iptables.Family, keys []model.Name) error {
	was := map[model.Name]frozen{}
	for _, k := range keys {
		was[k] = m.frozen[f][k]
		delete(m.frozen[f], k)
	}
	err := m.adjust(ctx, f)
	if err == nil {
		return nil
	}
	maps.Copy(m.frozen[f], was)
	if bad := m.adjust(ctx, f); bad != nil {
		return errors.Join(errNotUndone, err, bad)
	}
	return err
}

// adjust reads a family's tables, and changes them to what the plans in force and the frozen Services need.
func (m *Mode) adjust(ctx context.Context, f iptables.Family) error {
	have, err := m.read(ctx, f)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotUndone, err)
	}
	return m.restore(ctx, compare(f, have, m.tables(f, m.owners.Plans)))
}

// touched returns the Services of which the tables lack a rule, sorted.
func (m *Mode) touched(f iptables.Family, have map[string]iptables.Table) (keys []model.Name) {
	there := map[place]map[string]bool{}
	has := func(at place, rule string) bool {
		if there[at] == nil {
			there[at] = map[string]bool{}
			for _, r := range have[at.table][at.chain] {
				there[at][r] = true
			}
		}
		return there[at][rule]
	}
	for _, k := range slices.SortedFunc(maps.Keys(m.owners.Plans), model.Name.Compare) {
		same := true
		for chain, rules := range m.ownOf(f, k, m.owners.Plans[k]) {
			old, ok := have["nat"][chain]
			same = same && ok && slices.Equal(old, rules)
		}
		for at, rules := range m.sharedOf(f, k, m.owners.Plans[k]) {
			same = same && !slices.ContainsFunc(rules, func(r string) bool { return !has(at, r) })
		}
		if !same {
			keys = append(keys, k)
		}
	}
	return keys
}

// freeze finds the rules of some Services in the kernel: those that name them in shared chains, and the chains that
// these lead to.
func freeze(f iptables.Family, have map[string]iptables.Table, keys []model.Name) map[model.Name]frozen {
	out := make(map[model.Name]frozen, len(keys))
	for _, k := range keys {
		out[k] = frozen{map[place][]string{}, map[string][]string{}}
	}
	for at := range fixed(f, service.NodeFacts{}) {
		for _, rule := range have[at.table][at.chain] {
			fr, ok := out[serviceOf(rule)]
			if !ok {
				continue
			}
			fr.shared[at] = append(fr.shared[at], rule)
			if at.table == "nat" {
				fr.follow(have["nat"], rule)
			}
		}
	}
	return out
}

// follow adds the chain that a rule leads to, and recursively those that its rules lead to.
func (fr frozen) follow(nat iptables.Table, rule string) {
	_, after, ok := strings.Cut(rule, "-j ")
	if !ok || after == "" {
		return
	}
	chain := strings.Fields(after)[0]
	alone := func(p string) bool { return strings.HasPrefix(chain, p) }
	prefixes := []string{prefixCluster, prefixLocal, prefixOutside, prefixFirewall, prefixEndpoint}
	if _, done := fr.own[chain]; done || !slices.ContainsFunc(prefixes, alone) {
		return
	}
	rules, there := nat[chain]
	if !there {
		return
	}
	fr.own[chain] = rules
	for _, r := range rules {
		fr.follow(nat, r)
	}
}

// serviceOf reads the Service from a rule's comment, which begins with "namespace/name" or
// "namespace/name:port"; the zero Name for others.
func serviceOf(rule string) model.Name {
	_, text, ok := strings.Cut(rule, "--comment ")
	if !ok {
		return model.Name{}
	}
	text, _, _ = strings.Cut(strings.TrimPrefix(text, `"`), " ")
	text, _, _ = strings.Cut(strings.TrimSuffix(text, `"`), ":")
	ns, name, _ := strings.Cut(text, "/")
	return model.Name{Namespace: ns, Name: name}
}
