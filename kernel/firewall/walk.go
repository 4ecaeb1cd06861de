package firewall

import "net/netip"

// Packet is an example of a packet that must pass: the first one of a connection that nothing has translated. A zero
// field may have any value.
type Packet struct {
	// In and Out are names of links. Out is empty for packets addressed to the node.
	In, Out string
	Is6     bool
	// Proto is the IP protocol, Dport the port of TCP or UDP.
	Proto    uint8
	Dport    uint16
	Src, Dst netip.Addr
	// Untracked packets belong to no tracked connection.
	Untracked bool
	// Translated packets had another destination before.
	Translated bool
	Mark       uint32
}

// Match is whether a condition holds.
type Match int

// The results of a match, ordered so that the least of several is their conjunction. Maybe is for a field that is not
// known.
const (
	No Match = iota
	Maybe
	Yes
)

// Known is Yes or No.
func Known(b bool) Match {
	if b {
		return Yes
	}
	return No
}

// Verdict is what a rule decides for a packet that it matches.
type Verdict int

// The verdicts. Drop includes reject, and Accept includes queue.
const (
	Continue Verdict = iota
	Accept
	Drops
	Return
	Jump
	Goto
)

// Outcome is one of the verdicts that a rule may give, and the packets for which it gives it.
type Outcome struct {
	Match   Match
	Verdict Verdict
	Chain   string // of Jump and Goto
}

// Rule is a rule of a firewall.
type Rule interface {
	// Evaluate returns whether the rule matches, its verdict, and its text.
	Evaluate(p Packet) (m Match, outcomes []Outcome, text string)
	// Ours says that the rule is one of ours.
	Ours() bool
}

// Drop is a rule that drops a packet, or the policy of a base chain where Rule is nil.
type Drop struct {
	Rule Rule
	// Sure says that it drops the packet whatever its other fields are.
	Sure bool
	Text string
}

func (d Drop) sure() bool { return d.Sure }

// Bounds of one walk. What lies beyond them counts as accepted.
const (
	maxRules = 20_000
	maxDepth = 16
)

// Walk evaluates chains for a packet of which only some fields are known.
type Walk struct {
	// Rules returns those of a chain.
	Rules  func(chain string) []Rule
	Packet Packet
	// CountOurs evaluates our own rules, too.
	CountOurs bool

	visited int
	drops   []Drop
}

// Base walks a base chain and returns what drops the packet. policy says that the chain's policy drops.
func (w *Walk) Base(chain string, policy bool) []Drop {
	if w.chain(chain, true, 0) && policy {
		w.drops = append(w.drops, Drop{Sure: true, Text: "policy drop"})
	}
	return w.drops
}

// chain says whether the packet comes out of the chain's end.
func (w *Walk) chain(name string, sure bool, depth int) (through bool) {
	if depth > maxDepth {
		return true
	}
	for _, r := range w.Rules(name) {
		if w.visited++; w.visited > maxRules {
			return false
		}
		if r.Ours() && !w.CountOurs {
			continue
		}
		if done, through := w.rule(r, sure, depth); done {
			return through
		}
	}
	return true
}

// rule says whether the chain ends at a rule, and whether the packet is then passed on to the calling chain.
func (w *Walk) rule(r Rule, sure bool, depth int) (done, through bool) {
	m, outcomes, text := r.Evaluate(w.Packet)
	for _, o := range outcomes {
		holds := min(m, o.Match)
		if holds == No {
			continue
		}
		certain := sure && holds == Yes
		switch o.Verdict {
		case Continue:
			continue
		case Accept:
		case Drops:
			w.drops = append(w.drops, Drop{r, certain, text})
		case Return:
			through = true
		case Jump:
			if w.chain(o.Chain, certain, depth+1) {
				continue
			}
		case Goto:
			through = w.chain(o.Chain, certain, depth+1)
		}
		if holds == Yes {
			return true, through
		}
		through = false
	}
	return false, false
}
