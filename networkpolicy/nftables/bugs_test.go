package nftables

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy/world"
)

// wrongly is a kernel that gets another program than was rendered.
type wrongly struct {
	nft.Conn
	spoil func(*nft.Change)
}

// CommitAll implements nft.Conn.
func (w wrongly) CommitAll(ctx context.Context, changes ...nft.Change) error {
	changes = slices.Clone(changes)
	for i := range changes {
		w.spoil(&changes[i])
	}
	return w.Conn.CommitAll(ctx, changes...)
}

// chains spoils the rules of chains whose names begin so.
func chains(prefix string, spoil func([]nft.Rule) []nft.Rule) func(*nft.Change) {
	return func(ch *nft.Change) {
		for _, list := range [][]nft.Chain{ch.Table.Chains, ch.Batch.Chains} {
			for i := range list {
				if strings.HasPrefix(list[i].Name, prefix) {
					list[i].Rules = spoil(list[i].Rules)
				}
			}
		}
	}
}

// added spoils elements that are added to sets whose names have a part.
func added(part string, spoil func([]nft.Element) []nft.Element) func(*nft.Change) {
	return func(ch *nft.Change) {
		for name, list := range ch.Batch.Add {
			if strings.Contains(name, part) {
				ch.Batch.Add[name] = spoil(slices.Clone(list))
			}
		}
	}
}

// each spoils one element after the other.
func each(spoil func(*nft.Element)) func([]nft.Element) []nft.Element {
	return func(list []nft.Element) []nft.Element {
		for i := range list {
			spoil(&list[i])
		}
		return list
	}
}

func without(i int) func([]nft.Rule) []nft.Rule {
	return func(rules []nft.Rule) []nft.Rule { return slices.Delete(slices.Clone(rules), i, i+1) }
}

func none([]nft.Element) []nft.Element { return nil }

// moved is a key of protocol and port, at another port.
func moved(key string, by uint16) string {
	if len(key) != 8 {
		return key
	}
	b := []byte(key)
	binary.BigEndian.PutUint16(b[4:], binary.BigEndian.Uint16(b[4:])+by)
	return string(b)
}

// bug is a fault of the renderer.
type bug struct {
	name  string
	spoil func(*nft.Change)
}

func bugs() []bug {
	const minusOne = 0xffff
	classes := func(ch *nft.Change, pick func(string) string) {
		for name, list := range ch.Batch.Add {
			if strings.Contains(name, peersOf) || strings.Contains(name, blocksOf) {
				list = slices.Clone(list)
				for i := range list {
					list[i].Data = pick(list[i].Data)
				}
				ch.Batch.Add[name] = list
			}
		}
	}
	return []bug{
		{"isolation of ingress is not entered", func(ch *nft.Change) { delete(ch.Batch.Add, isolated(in)) }},
		{"isolation of egress is not entered", func(ch *nft.Change) { delete(ch.Batch.Add, isolated(out)) }},
		{"ingress is not asked for", chains(chainPostrouting, without(5))},
		{"egress is not asked for", chains(chainPostrouting, without(4))},
		{"what egress allows is not asked of ingress", chains(chainPostrouting, func(r []nft.Rule) []nft.Rule {
			return slices.Insert(slices.Clone(r), 5, nft.Rule{nft.In{Fields: []nft.Field{nft.Saddr}, Set: dropped(out)},
				nft.Accept()})
		})},
		{"the direction is the wrong one", chains("", func(rules []nft.Rule) []nft.Rule {
			for _, r := range rules {
				if g, ok := r[0].(nft.GotoBy); ok && strings.Contains(g.Map, peersOf) {
					g.Fields = []nft.Field{map[bool]nft.Field{true: nft.Daddr,
						false: nft.Saddr}[g.Fields[0] == nft.Saddr]}
					r[0] = g
				}
			}
			return rules
		})},
		{"established is forgotten to be asked", chains(chainPostrouting, func(r []nft.Rule) []nft.Rule {
			return append([]nft.Rule{{nft.NoCtMark(CutMark), nft.Accept()}}, r[1:]...)
		})},
		{"blocks are not asked for", func(ch *nft.Change) {
			for _, d := range directions() {
				chains(word(d)+profileOf, without(1))(ch)
			}
		}},
		{"blocks are asked before peers", func(ch *nft.Change) {
			for _, d := range directions() {
				chains(word(d)+profileOf, func(r []nft.Rule) []nft.Rule { return []nft.Rule{r[1], r[0], r[2]} })(ch)
			}
		}},
		{"who is unknown is not denied", func(ch *nft.Change) {
			for _, d := range directions() {
				chains(word(d)+profileOf, without(2))(ch)
			}
		}},
		{"other ports are not denied", func(ch *nft.Change) {
			for _, d := range directions() {
				chains(word(d)+classOf, without(1))(ch)
			}
		}},
		{"denied packets are counted only",
			chains("deny-", func(r []nft.Rule) []nft.Rule { return []nft.Rule{r[0], r[1][:1]} })},
		{"a pod does not reach itself", chains("deny-", without(0))},
		{"a port is one more", added(portsOf,
			each(func(e *nft.Element) { e.Key = moved(e.Key, 1); e.End = moved(e.End, 1) }))},
		{"a range ends one port later", added(rangesOf, each(func(e *nft.Element) { e.End = moved(e.End, 1) }))},
		{"a range begins one port later", added(rangesOf, each(func(e *nft.Element) {
			if e.Key != e.End {
				e.Key = moved(e.Key, 1)
			}
		}))},
		{"a range ends one port earlier", added(rangesOf, each(func(e *nft.Element) {
			if e.Key != e.End {
				e.End = moved(e.End, minusOne)
			}
		}))},
		{"UDP is TCP", func(ch *nft.Change) {
			for _, set := range []string{portsOf, rangesOf} {
				added(set, each(func(e *nft.Element) {
					if len(e.Key) > 0 && e.Key[0] == byte(model.UDP) {
						e.Key = string(byte(model.TCP)) + e.Key[1:]
						if e.End != "" {
							e.End = string(byte(model.TCP)) + e.End[1:]
						}
					}
				}))(ch)
			}
		}},
		{"an except is missing", added(blocksOf, func(list []nft.Element) []nft.Element {
			for i := range len(list) - 1 {
				list[i].End = list[i+1].Key
			}
			return list
		})},
		{"the last block is missing", added(blocksOf, func(list []nft.Element) []nft.Element {
			return list[:len(list)-1]
		})},
		{"the first peer is missing", added(peersOf, func(list []nft.Element) []nft.Element { return list[1:] })},
		{"ports of a peer are forgotten",
			func(ch *nft.Change) { classes(ch, func(string) string { return nft.Return }) }},
		{"all ports are taken for none", func(ch *nft.Change) {
			classes(ch, func(v string) string {
				if v == nft.Return {
					return deny(in)
				}
				return v
			})
		}},
		{"a class is shared wrongly", func(ch *nft.Change) {
			first := map[string]string{}
			classes(ch, func(v string) string {
				dir, _, isClass := strings.Cut(v, classOf)
				if !isClass {
					return v
				}
				if first[dir] == "" || v < first[dir] {
					first[dir] = v
				}
				return first[dir]
			})
		}},
		{"a stale peer is kept", func(ch *nft.Change) {
			dropped := ch.Batch.DropSets
			for name := range ch.Batch.Delete {
				if strings.Contains(name, peersOf) && !slices.Contains(dropped, name) && len(ch.Batch.Add[name]) == 0 {
					ch.Batch.Delete[name] = slices.DeleteFunc(slices.Clone(ch.Batch.Delete[name]),
						func(e nft.Element) bool { return e.Data == nft.Return })
				}
			}
		}},
		{"a changed peer is kept as it was", func(ch *nft.Change) {
			for name, list := range ch.Batch.Delete {
				if !strings.Contains(name, peersOf) {
					continue
				}
				kept := slices.DeleteFunc(slices.Clone(ch.Batch.Add[name]), func(e nft.Element) bool {
					return slices.ContainsFunc(list, func(o nft.Element) bool {
						return o.Key == e.Key &&
							o.Data == nft.Return
					})
				})
				ch.Batch.Delete[name] = slices.DeleteFunc(slices.Clone(list), func(o nft.Element) bool {
					return o.Data == nft.Return && slices.ContainsFunc(ch.Batch.Add[name],
						func(e nft.Element) bool { return o.Key == e.Key })
				})
				ch.Batch.Add[name] = kept
			}
		}},
		{"isolation that has ended is kept", func(ch *nft.Change) {
			if len(ch.Batch.DropChains) == 0 {
				delete(ch.Batch.Delete, isolated(in))
			}
		}},
		{"IPv6 has no peers", func(ch *nft.Change) {
			if ch.Table.Family == nft.IPv6 {
				added(peersOf, none)(ch)
			}
		}},
	}
}

// sharp are the sets of one step that the faults are tried with, beside those that
// change.
func sharp() []string {
	return []string{"deny all ingress of a namespace", "deny all egress of a namespace",
		"egress rules without types isolate both",
		"ingress and egress rules without types isolate both", "an empty list of ports is every port and protocol",
		"all but one namespace",
		"a block inside another, the smaller first", "blocks that overlap, with ports of their own",
		"an exception does not bind another rule"}
}

// Every fault is seen: the packets of the small world are a check that can fail. The
// kernel's refusing a program does not count.
func TestSeededBugsAreCaught(t *testing.T) {
	sets, err := world.Sets()
	if err != nil {
		t.Fatal(err)
	}
	if len(bugs()) < 20 {
		t.Errorf("only %d bugs", len(bugs()))
	}
	a := newArena(t)
	a.services("nftables")
	for _, b := range bugs() {
		if at := a.catch(b, sets); at == "" {
			t.Errorf("%q is not caught", b.name)
		} else {
			t.Logf("%q is caught by %s", b.name, at)
		}
	}
}

// catch says which probe of which set sees the bug, empty when none does.
func (a *arena) catch(b bug, sets []world.Set) string {
	a.t.Helper()
	if err := a.mode.Remove(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
	a.begin(wrongly{a.conn, b.spoil})
	clear(a.entries)
	a.rewatch()
	for _, set := range sets {
		if !slices.Contains(sharp(), set.Name) && len(set.Steps) == 1 {
			continue
		}
		for _, step := range set.Steps {
			if err := step.Put(a.store); err != nil {
				a.t.Fatal(err)
			}
			if err := a.follow(); err != nil {
				return "" // refused
			}
			if wrong := a.check(shots(step, true, false)); len(wrong) > 0 {
				return set.Name + ": " + wrong[0].String()
			}
		}
	}
	return ""
}
