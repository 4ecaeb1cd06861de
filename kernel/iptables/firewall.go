package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/firewall"
)

// Firewall is the host's firewall in iptables-legacy, which nf_tables does not show. It makes no table: a host without
// legacy tables has none after it.
type Firewall struct {
	// Kernel is of the flavour Legacy.
	Kernel *Kernel
}

var _ firewall.Firewall = Firewall{}

// policyEvery is the number of polls after which existing legacy tables count as changed: every ten seconds.
const policyEvery = 20

// filterTable is the table whose rules drop.
const filterTable = "filter"

// hookChains are the base chains of the table filter.
func hookChains() map[firewall.Hook]string {
	return map[firewall.Hook]string{firewall.Forward: "FORWARD", firewall.Input: "INPUT"}
}

// Admit implements firewall.Firewall.
func (w Firewall) Admit(ctx context.Context, p firewall.Pass) (found firewall.Found, err error) {
	var errs []error
	for _, f := range Families() {
		one, err := w.admit(ctx, f, p)
		found, errs = found.Merge(one), append(errs, err)
	}
	return found, errors.Join(errs...)
}

func (w Firewall) admit(ctx context.Context, f Family, p firewall.Pass) (found firewall.Found, err error) {
	t, err := w.read(ctx, f)
	if err != nil || t == nil {
		return found, err
	}
	chain := hookChains()[p.Hook]
	name := func(d firewall.Drop) string { return fmt.Sprintf("%s-legacy %s", f, d.Text) }
	drops := t.walk(chain, f, p.Samples, false)
	change, found := firewall.Judge(drops, t.walk(chain, f, p.Probes, false), name)
	have := t.ours(chain, p.Owner)
	if !change {
		if len(have) > 0 {
			err = w.replace(ctx, f, chain, have, nil)
		}
		return found, err
	}
	want := wantedRules(f, p)
	if again, _ := firewall.Judge(t.walk(chain, f, p.Samples, true), nil, name); again || !slices.Equal(have, want) {
		if err := w.replace(ctx, f, chain, have, want); err != nil {
			return firewall.Refused(drops, name, err), nil
		}
	}
	return firewall.Found{Accepted: []string{fmt.Sprintf("%s-legacy %s", f, chain)}}, nil
}

// wantedRules are our rules as iptables-save prints them.
func wantedRules(f Family, p firewall.Pass) (out []string) {
	for _, a := range p.Rules {
		if a.Dst.IsValid() && a.Dst.Is6() != (f == IPv6) {
			continue
		}
		var words []string
		add := func(on bool, w ...string) {
			if on {
				words = append(words, w...)
			}
		}
		if a.Dst.IsValid() {
			add(true, "-d", netip.PrefixFrom(a.Dst, a.Dst.BitLen()).String())
		}
		add(a.In != "", "-i", a.In+"+")
		add(a.Out != "", "-o", a.Out+"+")
		proto := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[a.Proto]
		add(proto != "", "-p", proto)
		add(a.Dport != 0, "-m", proto, "--dport", strconv.Itoa(int(a.Dport)))
		mark := fmt.Sprintf("%#x", a.Mark)
		add(a.Mark != 0, "-m", "mark", "--mark", mark+"/"+mark)
		add(a.Replies, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-m", "conntrack", "--ctstate", "DNAT")
		add(true, "-m", "comment", "--comment", strconv.Quote(firewall.CommentPrefix+p.Owner), "-j", "ACCEPT")
		out = append(out, strings.Join(words, " "))
	}
	return out
}

// replace removes rules of a chain and puts others in front, whole or not at all.
func (w Firewall) replace(ctx context.Context, f Family, chain string, old, rules []string) error {
	var text strings.Builder
	text.WriteString("*" + filterTable + "\n")
	for _, r := range old {
		fmt.Fprintf(&text, "-D %s %s\n", chain, r)
	}
	for i, r := range rules {
		fmt.Fprintf(&text, "-I %s %d %s\n", chain, i+1, r)
	}
	text.WriteString("COMMIT\n")
	return w.Kernel.Restore(ctx, f, []byte(text.String()))
}

// Accepting implements firewall.Firewall.
func (w Firewall) Accepting(ctx context.Context, owner string) ([]string, error) {
	return w.each(ctx, owner, nil)
}

// Withdraw implements firewall.Firewall.
func (w Firewall) Withdraw(ctx context.Context, owner string) ([]string, error) {
	return w.each(ctx, owner, func(f Family, chain string, rules []string) error {
		return w.replace(ctx, f, chain,
			rules, nil)
	})
}

func (w Firewall) each(ctx context.Context, owner string, do func(Family, string, []string) error) (
	chains []string, err error) {
	for _, f := range Families() {
		t, err := w.read(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, chain := range []string{"FORWARD", "INPUT"} {
			if t == nil {
				continue
			}
			rules := t.ours(chain, owner)
			if len(rules) == 0 {
				continue
			}
			chains = append(chains, fmt.Sprintf("%s-legacy %s", f, chain))
			if do != nil {
				if err := do(f, chain, rules); err != nil {
					return nil, err
				}
			}
		}
	}
	return chains, nil
}

// WatchOthers implements firewall.Firewall. The kernel does not report changes of legacy tables, so they are polled.
func (w Firewall) WatchOthers(ctx context.Context) (<-chan struct{}, error) {
	out := make(chan struct{}, 1)
	look := func() (all string) {
		for _, f := range Families() {
			all += w.Kernel.info(f) + "\n"
		}
		return all
	}
	go func() {
		last := look()
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for n := 1; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// A change of a policy alone does not change what look returns.
			if now := look(); now != last || n%policyEvery == 0 && strings.TrimSpace(now) != "" {
				last = now
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}
	}()
	return out, nil
}

// legacyTable is the chains of a table with the policies of its base chains.
type legacyTable struct {
	chains   map[string][]legacyRule
	policies map[string]string
}

// read returns the table filter, nil where the kernel has none.
func (w Firewall) read(ctx context.Context, f Family) (*legacyTable, error) {
	if has, err := w.Kernel.Has(ctx, f, filterTable); err != nil || !has {
		return nil, err
	}
	out, err := w.Kernel.run(ctx, nil, w.Kernel.program(f, "save"), "-t", filterTable)
	if err != nil {
		return nil, err
	}
	return parseLegacy(out), nil
}

func parseLegacy(text []byte) *legacyTable {
	t := &legacyTable{chains: map[string][]legacyRule{}, policies: map[string]string{}}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if chain, ok := strings.CutPrefix(line, ":"); ok {
			if words := strings.Fields(chain); len(words) > 1 {
				t.policies[words[0]] = words[1]
			}
		}
		if rule, ok := strings.CutPrefix(line, "-A "); ok {
			name, rule, _ := strings.Cut(rule, " ")
			t.chains[name] = append(t.chains[name], legacyRule{name, rule, splitWords(rule)})
		}
	}
	return t
}

// splitWords splits a rule as a shell would: iptables-save quotes only comments and prefixes of logs.
func splitWords(s string) (out []string) {
	var word strings.Builder
	quoted, some := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && quoted && i+1 < len(s):
			i++
			word.WriteByte(s[i])
		case c == '"':
			quoted, some = !quoted, true
		case c == ' ' && !quoted:
			if some || word.Len() > 0 {
				out = append(out, word.String())
			}
			word.Reset()
			some = false
		default:
			word.WriteByte(c)
		}
	}
	if some || word.Len() > 0 {
		out = append(out, word.String())
	}
	return out
}

func (t *legacyTable) walk(chain string, f Family, packets []firewall.Packet, countOurs bool) (drops []firewall.Drop) {
	for _, p := range packets {
		if p.Is6 != (f == IPv6) {
			continue
		}
		w := firewall.Walk{Packet: p, CountOurs: countOurs, Rules: func(chain string) (out []firewall.Rule) {
			for _, r := range t.chains[chain] {
				out = append(out, r)
			}
			return out
		}}
		for _, d := range w.Base(chain, t.policies[chain] == "DROP") {
			if d.Rule == nil {
				d.Text = chain + ": " + d.Text
			}
			drops = append(drops, d)
		}
	}
	return drops
}

// ours are the owner's rules of a chain, without "-A CHAIN".
func (t *legacyTable) ours(chain, owner string) (out []string) {
	for _, r := range t.chains[chain] {
		if r.comment() == firewall.CommentPrefix+owner {
			out = append(out, r.text)
		}
	}
	return out
}

// legacyRule is a rule as iptables-save prints it.
type legacyRule struct {
	chain, text string
	words       []string
}

var _ firewall.Rule = legacyRule{}

func (r legacyRule) comment() string {
	if i := slices.Index(r.words, "--comment"); i >= 0 && i+1 < len(r.words) {
		return r.words[i+1]
	}
	return ""
}

// Ours implements firewall.Rule.
func (r legacyRule) Ours() bool { return strings.HasPrefix(r.comment(), firewall.CommentPrefix) }

// Evaluate implements firewall.Rule. What it does not know may match.
func (r legacyRule) Evaluate(p firewall.Packet) (m firewall.Match, outcomes []firewall.Outcome, text string) {
	m = firewall.Yes
	not := false
	for i := 0; i < len(r.words) && m != firewall.No; i++ {
		word, value := r.words[i], ""
		if i+1 < len(r.words) {
			value = r.words[i+1]
		}
		switch word {
		case "!":
			not = true
			continue
		case "-j", "-g":
			return m, []firewall.Outcome{targetOf(word, value)}, "-A " + r.chain + " " + r.text
		}
		one := conditionOf(word, value, p)
		if not && one != firewall.Maybe {
			one = firewall.Known(one == firewall.No)
		}
		m, not = min(m, one), false
		for i+1 < len(r.words) && !strings.HasPrefix(r.words[i+1], "-") && r.words[i+1] != "!" {
			i++ // the option's values
		}
	}
	return m, nil, ""
}

func targetOf(option, target string) firewall.Outcome {
	o := firewall.Outcome{Match: firewall.Yes, Verdict: firewall.Jump, Chain: target}
	switch target {
	case "ACCEPT", "QUEUE", "NFQUEUE":
		o.Verdict = firewall.Accept
	case "DROP", "REJECT", "TARPIT", "STEAL":
		o.Verdict = firewall.Drops
	case "RETURN":
		o.Verdict = firewall.Return
	}
	if option == "-g" {
		o.Verdict = firewall.Goto
	}
	return o // a target that is no chain is one without rules, and goes on
}

// conditionOf evaluates one option of a rule.
func conditionOf(option, value string, p firewall.Packet) firewall.Match {
	switch option {
	case "-i", "--in-interface":
		return linkMatches(value, p.In)
	case "-o", "--out-interface":
		return linkMatches(value, p.Out)
	case "-p", "--protocol":
		return protocolMatches(value, p.Proto)
	case "-s", "--source":
		return addressMatches(value, p.Src)
	case "-d", "--destination":
		return addressMatches(value, p.Dst)
	case "--ctstate", "--state":
		state := "NEW"
		if p.Untracked {
			state = "UNTRACKED"
		}
		states := strings.Split(value, ",")
		return firewall.Known(slices.Contains(states, state) || p.Translated && slices.Contains(states, "DNAT"))
	case "--comment":
		return firewall.Yes
	case "--dport", "--dports", "--destination-ports":
		return portMatches(value, p.Dport)
	case "--mark":
		return markMatches(value, p.Mark)
	case "-m":
		switch value {
		case "comment", "conntrack", "state", "tcp", "udp", "multiport", "mark":
			return firewall.Yes
		}
	}
	return firewall.Maybe
}

func linkMatches(pattern, name string) firewall.Match {
	if prefix, ok := strings.CutSuffix(pattern, "+"); ok {
		return firewall.Known(strings.HasPrefix(name, prefix))
	}
	return firewall.Known(name == pattern)
}

func protocolMatches(value string, proto uint8) firewall.Match {
	number, ok := map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "icmp": unix.IPPROTO_ICMP,
		"ipv6-icmp": unix.IPPROTO_ICMPV6,
		"sctp":      unix.IPPROTO_SCTP, "esp": unix.IPPROTO_ESP, "ah": unix.IPPROTO_AH, "gre": unix.IPPROTO_GRE}[value]
	if n, err := strconv.ParseUint(value, 10, 8); err == nil {
		number, ok = uint8(n), true
	}
	switch {
	case value == "all" || ok && number == 0:
		return firewall.Yes
	case !ok || proto == 0:
		return firewall.Maybe
	}
	return firewall.Known(number == proto)
}

func addressMatches(value string, a netip.Addr) firewall.Match {
	prefix, err := netip.ParsePrefix(value)
	switch {
	case err != nil:
		return firewall.Maybe // a mask that is no prefix
	case prefix.Bits() == 0:
		return firewall.Yes
	case !a.IsValid():
		return firewall.Maybe
	}
	return firewall.Known(prefix.Contains(a))
}

// markMatches follows --mark VALUE/MASK.
func markMatches(text string, mark uint32) firewall.Match {
	value, mask, masked := strings.Cut(text, "/")
	if !masked {
		mask = "0xffffffff"
	}
	want, err := strconv.ParseUint(value, 0, 32)
	bits, fail := strconv.ParseUint(mask, 0, 32)
	if err != nil || fail != nil {
		return firewall.Maybe
	}
	return firewall.Known(uint64(mark)&bits == want)
}

func portMatches(value string, port uint16) firewall.Match {
	if port == 0 {
		return firewall.Maybe
	}
	for _, part := range strings.Split(value, ",") {
		low, high, ranged := strings.Cut(part, ":")
		if !ranged {
			high = low
		}
		from, err := strconv.ParseUint("0"+low, 10, 16)
		to, fail := strconv.ParseUint(high, 10, 16)
		if err != nil || fail != nil {
			return firewall.Maybe
		}
		if uint64(port) >= from && uint64(port) <= to {
			return firewall.Yes
		}
	}
	return firewall.No
}
