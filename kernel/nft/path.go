package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/firewall"
)

// evaluation evaluates rules of one chain for a packet of which only some fields are known. A condition on another
// field may match or not.
type evaluation struct {
	// elements returns those of a set.
	elements func(set string) []nftables.SetElement
	// index is the number of a link, 0 where it is not known.
	index  func(link string) uint32
	packet firewall.Packet
	// forward says that the chain sees what is forwarded, and not what the node takes.
	forward bool
}

// loads are what a rule has read of the packet, by register in units of 32 bits. A field that is not known has no
// data.
type loads map[uint32]loaded

type loaded struct {
	name string
	data []byte
}

func register(r uint32) uint32 {
	if r < unix.NFT_REG32_00 {
		return (r - 1) * 4
	}
	return r - unix.NFT_REG32_00
}

// evaluate says whether a rule matches, what it says then, and what it reads like.
func (w *evaluation) evaluate(r *nftables.Rule) (m firewall.Match, verdicts []firewall.Outcome, text string) {
	m = firewall.Yes
	regs := loads{}
	var words []string
	for _, e := range r.Exprs {
		var one firewall.Match
		var word string
		switch e := e.(type) {
		case *expr.Verdict:
			verdicts = append(verdicts, firewall.Outcome{Match: firewall.Yes, Verdict: meaningOf(e.Kind),
				Chain: e.Chain})
			one, word = firewall.Yes, verdictName(e)
		case *expr.Reject:
			verdicts = append(verdicts, firewall.Outcome{Match: firewall.Yes, Verdict: firewall.Drops})
			one, word = firewall.Yes, "reject"
		case *expr.Target:
			one = firewall.Yes
			if e.Name == "REJECT" {
				verdicts, word = append(verdicts, firewall.Outcome{Match: firewall.Yes, Verdict: firewall.Drops}),
					"reject"
			}
		case *expr.Lookup:
			if e.IsDestRegSet && e.DestRegister == 0 {
				verdicts, one, word = append(verdicts, w.verdictMap(e, regs)...), firewall.Yes, "vmap"
				break
			}
			one, word = w.lookup(e, regs)
		default:
			one, word = w.condition(e, regs)
		}
		if m = min(m, one); m == firewall.No {
			return firewall.No, nil, ""
		}
		if word != "" {
			words = append(words, word)
		}
	}
	return m, verdicts, strings.Join(words, " ")
}

func meaningOf(kind expr.VerdictKind) firewall.Verdict {
	switch kind {
	case expr.VerdictContinue, expr.VerdictBreak:
		return firewall.Continue
	case expr.VerdictDrop:
		return firewall.Drops
	case expr.VerdictReturn:
		return firewall.Return
	case expr.VerdictJump:
		return firewall.Jump
	case expr.VerdictGoto:
		return firewall.Goto
	}
	return firewall.Accept // queued and stolen, too
}

func verdictName(v *expr.Verdict) string {
	return map[expr.VerdictKind]string{expr.VerdictDrop: "drop", expr.VerdictAccept: "accept",
		expr.VerdictReturn: "return",
		expr.VerdictJump:   "jump " + v.Chain, expr.VerdictGoto: "goto " + v.Chain}[v.Kind]
}

// condition evaluates one expression that has no verdict, or reads a field for later ones.
func (w *evaluation) condition(e expr.Any, regs loads) (firewall.Match, string) {
	switch e := e.(type) {
	case *expr.Meta:
		if !e.SourceRegister {
			regs[register(e.Register)] = w.meta(e.Key)
		}
	case *expr.Ct:
		if !e.SourceRegister {
			regs[register(e.Register)] = w.conntracked(e.Key)
		}
	case *expr.Payload:
		regs[register(e.DestRegister)] = w.payload(e)
	case *expr.Fib:
		regs[register(e.Register)] = w.fib(e)
	case *expr.Bitwise:
		regs[register(e.DestRegister)] = masked(regs[register(e.SourceRegister)], e)
	case *expr.Byteorder:
		regs[register(e.DestRegister)] = loaded{name: regs[register(e.SourceRegister)].name}
	case *expr.Cmp:
		f := regs[register(e.Register)]
		return compare(f, e.Op, e.Data), fmt.Sprintf("%s %s%s", f, operator(e.Op), show(f, e.Data))
	case *expr.Range:
		f := regs[register(e.Register)]
		in := min(compare(f, expr.CmpOpGte, e.FromData), compare(f, expr.CmpOpLte, e.ToData))
		if e.Op == expr.CmpOpNeq && in != firewall.Maybe {
			in = firewall.Known(in == firewall.No)
		}
		return in, fmt.Sprintf("%s %s%s-%s", f, operator(e.Op), show(f, e.FromData), show(f, e.ToData))
	case *expr.Match:
		return w.legacyMatch(e)
	case *expr.Limit, *expr.Connlimit, *expr.Quota, *expr.Dynset:
		return firewall.Maybe, "limit"
	case *expr.Counter, *expr.Log, *expr.Notrack, *expr.Objref, *expr.FlowOffload, *expr.Immediate,
		*expr.NAT, *expr.Masq:
	default:
		clear(regs) // a field that is not known here
	}
	return firewall.Yes, ""
}

func operator(op expr.CmpOp) string {
	return map[expr.CmpOp]string{expr.CmpOpNeq: "!= ", expr.CmpOpLt: "< ", expr.CmpOpLte: "<= ", expr.CmpOpGt: "> ",
		expr.CmpOpGte: ">= "}[op]
}

// String is the name of a field, for people.
func (f loaded) String() string {
	if f.name == "" {
		return "…"
	}
	return f.name
}

// show writes data of a field for people.
func show(f loaded, data []byte) string {
	switch f.name {
	case "iifname", "oifname":
		name := strings.TrimRight(string(data), "\x00")
		if len(data) < unix.IFNAMSIZ {
			name += "*"
		}
		return fmt.Sprintf("%q", name)
	case "ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr":
		size := 4
		if strings.HasPrefix(f.name, "ip6") {
			size = 16
		}
		a, _ := netip.AddrFromSlice(append(slices.Clone(data), make([]byte, max(0, size-len(data)))...))
		if len(data) < size {
			return netip.PrefixFrom(a, len(data)*8).String()
		}
		return a.String()
	case "dport", "sport":
		if len(data) == 2 {
			return fmt.Sprint(binary.BigEndian.Uint16(data))
		}
	}
	return fmt.Sprintf("%#x", data)
}

// compare follows nft_cmp: as many bytes as there are in data.
func compare(f loaded, op expr.CmpOp, data []byte) firewall.Match {
	if f.data == nil || len(data) > len(f.data) {
		return firewall.Maybe
	}
	c := bytes.Compare(f.data[:len(data)], data)
	switch op {
	case expr.CmpOpEq:
		return firewall.Known(c == 0)
	case expr.CmpOpNeq:
		return firewall.Known(c != 0)
	case expr.CmpOpLt:
		return firewall.Known(c < 0)
	case expr.CmpOpLte:
		return firewall.Known(c <= 0)
	case expr.CmpOpGt:
		return firewall.Known(c > 0)
	case expr.CmpOpGte:
		return firewall.Known(c >= 0)
	}
	return firewall.Maybe
}

func masked(f loaded, e *expr.Bitwise) loaded {
	out := loaded{name: f.name}
	if len(e.Mask) == 0 || len(e.Xor) != len(e.Mask) || len(f.data) < len(e.Mask) {
		return out
	}
	for i := range e.Mask {
		out.data = append(out.data, f.data[i]&e.Mask[i]^e.Xor[i])
	}
	return out
}

// anyLink is the number of a link of which only the name is known: it is not the loopback's.
const anyLink = 0x7ffffff1

func (w *evaluation) meta(key expr.MetaKey) loaded {
	name := func(s string) []byte { return append([]byte(s), make([]byte, max(0, unix.IFNAMSIZ-len(s)))...) }
	number := func(s string) []byte {
		i := uint32(0)
		if s != "" {
			if i = w.index(s); i == 0 {
				i = anyLink
			}
		}
		return binary.NativeEndian.AppendUint32(nil, i)
	}
	p := w.packet
	switch key {
	case expr.MetaKeyIIFNAME:
		return loaded{"iifname", name(p.In)}
	case expr.MetaKeyOIFNAME:
		return loaded{"oifname", name(p.Out)}
	case expr.MetaKeyIIF:
		return loaded{"iif", number(p.In)}
	case expr.MetaKeyOIF:
		return loaded{"oif", number(p.Out)}
	case expr.MetaKeyIIFTYPE, expr.MetaKeyOIFTYPE:
		return loaded{"type of the link", binary.NativeEndian.AppendUint16(nil, unix.ARPHRD_ETHER)}
	case expr.MetaKeyIIFGROUP, expr.MetaKeyOIFGROUP:
		return loaded{"group of the link", make([]byte, 4)}
	case expr.MetaKeyMARK:
		return loaded{"mark", binary.NativeEndian.AppendUint32(nil, p.Mark)}
	case expr.MetaKeyPKTTYPE:
		return loaded{"pkttype", []byte{unix.PACKET_HOST}}
	case expr.MetaKeyNFPROTO:
		return loaded{"nfproto", []byte{w.family()}}
	case expr.MetaKeyPROTOCOL:
		ethertype := uint16(unix.ETH_P_IP)
		if p.Is6 {
			ethertype = unix.ETH_P_IPV6
		}
		return loaded{"protocol", binary.BigEndian.AppendUint16(nil, ethertype)}
	case expr.MetaKeyL4PROTO:
		return w.proto()
	}
	return loaded{}
}

func (w *evaluation) family() byte {
	if w.packet.Is6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

func (w *evaluation) proto() loaded {
	f := loaded{name: "l4proto"}
	if w.packet.Proto != 0 {
		f.data = []byte{w.packet.Proto}
	}
	return f
}

// conntracked is what connection tracking says of a new connection that nothing has translated.
func (w *evaluation) conntracked(key expr.CtKey) loaded {
	switch key {
	case expr.CtKeySTATE:
		state := expr.CtStateBitNEW
		if w.packet.Untracked {
			state = expr.CtStateBitUNTRACKED
		}
		return loaded{"ct state", binary.NativeEndian.AppendUint32(nil, state)}
	case expr.CtKeySTATUS:
		return loaded{"ct status", binary.NativeEndian.AppendUint32(nil, w.status())}
	case expr.CtKeyMARK:
		return loaded{"ct mark", make([]byte, 4)}
	case expr.CtKeyDIRECTION:
		return loaded{"ct direction", []byte{0}}
	}
	return loaded{}
}

// dnat is IPS_DST_NAT of connection tracking.
const dnat = 1 << 5

func (w *evaluation) status() uint32 {
	if w.packet.Translated {
		return dnat
	}
	return 0
}

// payload is the part of the headers that has one of the known fields.
func (w *evaluation) payload(e *expr.Payload) loaded {
	p := w.packet
	addr := func(name string, a netip.Addr) loaded {
		f := loaded{name: name}
		if a.IsValid() {
			f.data = a.AsSlice()[:min(int(e.Len), a.BitLen()/8)]
		}
		return f
	}
	type at struct{ offset, most uint32 }
	where := at{e.Offset, e.Len}
	switch e.Base {
	case expr.PayloadBaseNetworkHeader:
		switch {
		case !p.Is6 && where == at{9, 1}, p.Is6 && where == at{6, 1}:
			return w.proto()
		case !p.Is6 && e.Offset == 12 && e.Len <= 4:
			return addr("ip saddr", p.Src)
		case !p.Is6 && e.Offset == 16 && e.Len <= 4:
			return addr("ip daddr", p.Dst)
		case p.Is6 && e.Offset == 8 && e.Len <= 16:
			return addr("ip6 saddr", p.Src)
		case p.Is6 && e.Offset == 24 && e.Len <= 16:
			return addr("ip6 daddr", p.Dst)
		}
	case expr.PayloadBaseTransportHeader:
		switch where {
		case at{2, 2}:
			f := loaded{name: "dport"}
			if p.Dport != 0 {
				f.data = binary.BigEndian.AppendUint16(nil, p.Dport)
			}
			return f
		case at{0, 2}:
			return loaded{name: "sport"}
		}
	}
	return loaded{}
}

// fib is what a look-up of a route says: there is one, and the destination is the node's own where it takes the packet.
func (w *evaluation) fib(e *expr.Fib) loaded {
	if e.ResultADDRTYPE {
		kind := uint32(unix.RTN_UNICAST)
		if e.FlagDADDR && !w.forward {
			kind = unix.RTN_LOCAL
		}
		return loaded{"fib type", binary.NativeEndian.AppendUint32(nil, kind)}
	}
	if e.ResultOIFNAME {
		return loaded{name: "fib oifname"}
	}
	return loaded{"fib", binary.NativeEndian.AppendUint32(nil, 1)}
}

// lookup says whether a field is in a set.
func (w *evaluation) lookup(e *expr.Lookup, regs loads) (firewall.Match, string) {
	f := regs[register(e.SourceRegister)]
	in := within(f, w.elements(e.SetName))
	op := ""
	if e.Invert {
		op = "!= "
		if in != firewall.Maybe {
			in = firewall.Known(in == firewall.No)
		}
	}
	return in, fmt.Sprintf("%s %s@%s", f, op, e.SetName)
}

// within says whether a field is one of the elements.
func within(f loaded, list []nftables.SetElement) firewall.Match {
	_, m := find(f, list)
	return m
}

// find returns the element that a field is, or is in: intervals are pairs of a first key and one behind the last.
func find(f loaded, list []nftables.SetElement) (nftables.SetElement, firewall.Match) {
	var none nftables.SetElement
	if len(list) == 0 {
		return none, firewall.No
	}
	if f.data == nil {
		return none, firewall.Maybe
	}
	interval := false
	var exact, last *nftables.SetElement
	for i, el := range list {
		if len(el.Key) == 0 || len(el.Key) > len(f.data) || el.KeyEnd != nil {
			return none, firewall.Maybe // a catch-all, or of several fields
		}
		interval = interval || el.IntervalEnd
		key := f.data[:len(el.Key)]
		if bytes.Equal(key, el.Key) && !el.IntervalEnd {
			exact = &list[i]
		}
		if c := bytes.Compare(el.Key, key); c <= 0 && (last == nil || bytes.Compare(el.Key, last.Key) > 0 ||
			bytes.Equal(el.Key, last.Key) && !el.IntervalEnd) {
			last = &list[i]
		}
	}
	switch {
	case interval && last != nil && !last.IntervalEnd:
		return *last, firewall.Yes
	case !interval && exact != nil:
		return *exact, firewall.Yes
	}
	return none, firewall.No
}

// verdictMap are the verdicts that a map may give.
func (w *evaluation) verdictMap(e *expr.Lookup, regs loads) (out []firewall.Outcome) {
	list := w.elements(e.SetName)
	add := func(el nftables.SetElement, m firewall.Match) {
		if v, ok := verdictIn(el.Val); ok {
			out = append(out, firewall.Outcome{Match: m, Verdict: meaningOf(v.Kind), Chain: v.Chain})
		}
	}
	found, m := find(regs[register(e.SourceRegister)], list)
	switch m {
	case firewall.Yes:
		add(found, m)
	case firewall.Maybe:
		for _, el := range list {
			add(el, m)
		}
	}
	return out
}

// verdictIn reads the verdict of an element, which the library leaves as it came.
func verdictIn(raw []byte) (v expr.Verdict, ok bool) {
	ad, err := netlink.NewAttributeDecoder(raw)
	if err != nil {
		return v, false
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			v.Kind, ok = expr.VerdictKind(int32(ad.Uint32())), true
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = strings.TrimRight(ad.String(), "\x00")
		}
	}
	return v, ok && ad.Err() == nil
}

// legacyMatch evaluates a match of xtables, which iptables-nft puts into rules.
func (w *evaluation) legacyMatch(e *expr.Match) (firewall.Match, string) {
	switch e.Name {
	case "comment":
		return firewall.Yes, ""
	case "conntrack", "state":
	default:
		return firewall.Maybe, e.Name
	}
	var base xt.ConntrackMtinfoBase
	var states uint16
	switch info := e.Info.(type) {
	case *xt.ConntrackMtinfo3:
		base, states = info.ConntrackMtinfoBase, info.StateMask
	case *xt.ConntrackMtinfo2:
		base, states = info.ConntrackMtinfoBase, info.StateMask
	case *xt.ConntrackMtinfo1:
		base, states = info.ConntrackMtinfoBase, uint16(info.StateMask)
	default:
		return firewall.Maybe, e.Name
	}
	if base.MatchFlags&^uint16(xt.ConntrackState|xt.ConntrackStateAlias) != 0 {
		return firewall.Maybe, "conntrack"
	}
	// XT_CONNTRACK_STATE_BIT(IP_CT_NEW) and XT_CONNTRACK_STATE_UNTRACKED.
	state := uint16(1 << 3)
	if w.packet.Untracked {
		state = 1 << 8
	}
	if w.packet.Translated {
		state |= 1 << 7 // XT_CONNTRACK_STATE_DNAT
	}
	is := states&state != 0
	if base.InvertFlags&uint16(xt.ConntrackState) != 0 {
		is = !is
	}
	return firewall.Known(is), "conntrack"
}

// foreignRule is a rule of a chain of others, or one of ours there.
type foreignRule struct {
	*nftables.Rule
	evaluation *evaluation
}

var _ firewall.Rule = foreignRule{}

// Evaluate implements firewall.Rule.
func (r foreignRule) Evaluate(firewall.Packet) (firewall.Match, []firewall.Outcome, string) {
	return r.evaluation.evaluate(r.Rule)
}

// Ours implements firewall.Rule: ours are known by their comment.
func (r foreignRule) Ours() bool {
	text, ok := userdata.GetString(r.UserData, userdata.TypeComment)
	return ok && strings.HasPrefix(text, firewall.CommentPrefix)
}
