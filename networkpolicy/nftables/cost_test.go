package nftables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
)

// walker runs a packet through the rendered program, as the kernel would, and counts the
// expressions that it evaluates.
type walker struct {
	family      nft.Family
	chains      map[string]nft.Chain
	elements    map[string][]nft.Element
	packet      walked
	expressions int
}

// walked is a packet of a flow: its first, or one of an established flow.
type walked struct {
	from, to    netip.Addr
	proto       model.Protocol
	port        uint16
	established bool
}

// newWalker renders the program of a world.
func newWalker(w *large, f nft.Family) *walker {
	batch := New(nil, nil).program.Fresh(w.entries)[f]
	out := &walker{family: f, chains: map[string]nft.Chain{}, elements: batch.Add}
	for _, c := range slices.Concat(table(f).Chains, batch.Chains) {
		out.chains[c.Name] = c
	}
	return out
}

// The verdicts of a walk: "drop" and "accept" are final.
const goOn, goBack, ended = "", "return", "end of chain"

// run says whether a packet passes both hooks.
func (w *walker) run(p walked) (passes bool) {
	w.packet, w.expressions = p, 0
	for _, hook := range []string{chainPrerouting, chainPostrouting} {
		if w.chain(hook) == "drop" {
			return false
		}
	}
	return true
}

func (w *walker) chain(name string) string {
	c, ok := w.chains[name]
	if !ok {
		panic("no chain " + name)
	}
	for _, r := range c.Rules {
		switch v := w.rule(r); v {
		case goOn:
		case goBack:
			return goBack
		default:
			return v
		}
	}
	return ended
}

// rule returns goOn when the next rule is to be tried.
func (w *walker) rule(r nft.Rule) string {
	for _, s := range r {
		w.expressions += nft.Expressions(w.family, s)
		if by, ok := s.(nft.GotoBy); ok {
			e, found := w.find(by.Map, w.key(by.Fields))
			if !found {
				return goOn
			}
			return w.follow(e.Data)
		}
		text := nft.Text(w.family, s)
		switch {
		case text == "accept" || text == "drop" || text == goBack:
			return text
		case strings.HasPrefix(text, "goto "):
			return w.chain(strings.TrimPrefix(text, "goto "))
		case !w.matches(s, text):
			return goOn
		}
	}
	return goOn
}

// follow takes the verdict of an element. Behind a jump the next rule is tried.
func (w *walker) follow(data string) string {
	if data == nft.Return {
		return goBack
	}
	if to, ok := strings.CutPrefix(data, nft.Jump("")); ok {
		if v := w.chain(to); v == "drop" || v == "accept" {
			return v
		}
		return goOn
	}
	return w.chain(data)
}

func (w *walker) matches(s nft.Statement, text string) bool {
	switch x := s.(type) {
	case nft.In:
		_, found := w.find(x.Set, w.key(x.Fields))
		return found != x.Not
	case nft.CtState:
		return w.packet.established
	case nft.NoCtMark:
		return true
	case nft.LocalSaddr, nft.IsReply:
		return false // nobody here is a node
	}
	panic("what is " + text)
}

func (w *walker) key(fields []nft.Field) string {
	var parts []any
	for _, x := range fields {
		switch x {
		case nft.Saddr:
			parts = append(parts, w.packet.from)
		case nft.Daddr, nft.OriginalDaddr: // nothing is translated here
			parts = append(parts, w.packet.to)
		case nft.L4Proto:
			parts = append(parts, uint8(w.packet.proto))
		case nft.Dport:
			parts = append(parts, w.packet.port)
		default:
			panic(fmt.Sprint("what is ", x))
		}
	}
	return nft.Pack(parts...)
}

func (w *walker) find(set, key string) (nft.Element, bool) {
	for _, e := range w.elements[set] {
		if e.Key == key || e.End != "" && e.Key <= key && (key < e.End || strings.HasPrefix(set, rangesOf) &&
			key == e.End) {
			return e, true
		}
	}
	return nft.Element{}, false
}

// journeys are packets to and from pod 0, which is isolated, in a family.
func journeys(f nft.Family) []struct {
	name   string
	packet walked
	passes bool
} {
	at, strange, block := largeAddr, addr("192.0.2.1"), addr("192.168.0.7")
	if f == nft.IPv6 {
		at, strange, block = largeAddr6, addr("2001:db8::1"), addr("fd02::7")
	}
	return []struct {
		name   string
		packet walked
		passes bool
	}{
		{"established", walked{at(210), at(0), model.TCP, 80, true}, true},
		{"new, from a pod that may", walked{at(210), at(0), model.TCP, 80, false}, true},
		{"new, from a block that may", walked{block, at(0), model.TCP, 9000, false}, true},
		{"new, both ends are isolated here and allow it", walked{at(0), at(100), model.TCP, 80, false}, true},
		{"new, from a pod that may, at another port", walked{at(210), at(0), model.TCP, 81, false}, false},
		{"new, from a stranger", walked{strange, at(0), model.TCP, 80, false}, false},
		{"new, to a pod that may not be called", walked{at(0), at(10), model.TCP, 80, false}, false},
		{"new, to a stranger", walked{at(0), strange, model.TCP, 80, false}, false},
		{"new, to DNS", walked{at(0), dnsVIP(f == nft.IPv6), model.UDP, 53, false}, true},
		{"new, of nobody who is isolated here", walked{at(999), strange, model.TCP, 80, false}, true},
	}
}

// A packet passes as many expressions at 1,000 policies as at one.
func TestAPacketCostsTheSameAt1000Policies(t *testing.T) {
	worlds := map[int]*large{}
	for _, n := range []int{1, largePolicies} {
		worlds[n] = newLarge(t, n, New(nft.NewFake(), nil))
		worlds[n].follow()
		t.Logf("%d policies: %d entries", n, len(worlds[n].entries))
	}
	for _, f := range nft.Families() {
		walkers := map[int]*walker{}
		for n, w := range worlds {
			walkers[n] = newWalker(w, f)
		}
		for _, j := range journeys(f) {
			count := map[int]int{}
			for n, walk := range walkers {
				if passes := walk.run(j.packet); passes != j.passes {
					t.Errorf("%s, %s, %d policies: passes: %v, want %v", f, j.name, n, passes, j.passes)
				}
				count[n] = walk.expressions
			}
			t.Logf("%s, %s: %d expressions", f, j.name, count[largePolicies])
			if count[1] != count[largePolicies] || count[1] == 0 {
				t.Errorf("%s, %s: %d expressions with one policy, %d with %d", f, j.name, count[1],
					count[largePolicies], largePolicies)
			}
		}
	}
}
