package nftables

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// Text renders plans as nft text, for people.
func Text(plans map[model.Name]service.Plan, facts service.NodeFacts) string {
	return text(layout{name: TableName}, plans, facts)
}

// TextIPVSCompanion is Text of the tables that complement IPVS, see NewIPVSCompanion.
func TextIPVSCompanion(plans map[model.Name]service.Plan, facts service.NodeFacts,
	bypassIPVS func(model.Name) bool) string {
	return text(companion(bypassIPVS), plans, facts)
}

func text(lay layout, plans map[model.Name]service.Plan, facts service.NodeFacts) string {
	m := newMode(nil, nil, lay)
	m.SetNodeFacts(facts)
	out := ""
	batches := m.program.Fresh(plans)
	for _, f := range nft.Families() {
		b := batches[f]
		slices.SortFunc(b.Chains, func(x, y nft.Chain) int { return chainOrder(x.Name, y.Name) })
		out += m.lay.table(f).Text(b.Add, b.Chains)
	}
	return out
}

// chainOrder sorts chains for people: by kind, then by number.
func chainOrder(a, b string) int {
	split := func(s string) (string, int) {
		i := strings.IndexAny(s, "0123456789")
		n, kind := 0, s[:i]
		rest := s[i:]
		if j := strings.IndexByte(rest, '-'); j >= 0 {
			kind, rest = kind+rest[j:], rest[:j]
		}
		n, _ = strconv.Atoi(rest)
		return kind, n
	}
	kindA, numberA := split(a)
	kindB, numberB := split(b)
	return cmp.Or(cmp.Compare(kindA, kindB), cmp.Compare(numberA, numberB))
}
