package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Statement is a part of a rule: a match or an action.
type Statement interface {
	text(f Family) string
	exprs(f Family) []expr.Any
}

// Rule is statements that are tried from left to right.
type Rule []Statement

// Expressions are how many expressions the kernel evaluates for a statement, whether it
// matches or not.
func Expressions(f Family, s Statement) int { return len(s.exprs(f)) }

// Text is a statement as nft writes it.
func Text(f Family, s Statement) string { return s.text(f) }

// firstRegister is NFT_REG32_00: registers of four bytes from there on.
const firstRegister = 8

// Field is something of a packet that can be looked up; fields are concatenated.
type Field interface {
	text(f Family) string
	// load brings it into registers from reg on, and returns the next free one.
	load(f Family, reg uint32) ([]expr.Any, uint32)
}

type field uint8

// The fields of a packet.
const (
	Saddr field = iota
	Daddr
	L4Proto
	Sport
	Dport
)

func (x field) text(f Family) string {
	switch x {
	case Saddr:
		return f.String() + " saddr"
	case Daddr:
		return f.String() + " daddr"
	case L4Proto:
		return "meta l4proto"
	case Sport:
		return "th sport"
	}
	return "th dport"
}

func (x field) load(f Family, reg uint32) ([]expr.Any, uint32) {
	switch x {
	case L4Proto:
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}}, reg + 1
	case Sport, Dport:
		offset := uint32(0)
		if x == Dport {
			offset = 2
		}
		return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset,
			Len: 2}}, reg + 1
	}
	n := uint32(f.addrLen())
	offset := map[bool]uint32{true: 12, false: 8}[f == IPv4]
	if x == Daddr {
		offset += n
	}
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n}},
		reg + n/4
}

// The fields of the first packet of the connection, before any translation.
const (
	OriginalDaddr originalField = iota
	OriginalDport
)

type originalField uint8

func (x originalField) text(f Family) string {
	if x == OriginalDaddr {
		return "ct original " + f.String() + " daddr"
	}
	return "ct original proto-dst"
}

func (x originalField) load(f Family, reg uint32) ([]expr.Any, uint32) {
	if x == OriginalDaddr {
		return []expr.Any{&expr.Ct{Key: expr.CtKeyDST, Register: reg}}, reg + uint32(f.addrLen()/4)
	}
	return []expr.Any{&expr.Ct{Key: expr.CtKeyPROTODST, Register: reg}}, reg + 1
}

// Random is a random number below N.
type Random struct{ N uint32 }

func (r Random) text(Family) string { return fmt.Sprintf("numgen random mod %d", r.N) }

func (r Random) load(_ Family, reg uint32) ([]expr.Any, uint32) {
	return []expr.Any{&expr.Numgen{Register: reg, Modulus: r.N, Type: unix.NFT_NG_RANDOM}}, reg + 1
}

func fieldsText(f Family, fields []Field) string {
	var parts []string
	for _, x := range fields {
		parts = append(parts, x.text(f))
	}
	return strings.Join(parts, " . ")
}

func load(f Family, fields []Field) []expr.Any {
	out, _ := loadFrom(f, fields, firstRegister)
	return out
}

func loadFrom(f Family, fields []Field, reg uint32) (out []expr.Any, next uint32) {
	for _, x := range fields {
		var es []expr.Any
		es, reg = x.load(f, reg)
		out = append(out, es...)
	}
	return out, reg
}

// In matches when the fields are a member of the set, or are not.
type In struct {
	Fields []Field
	Set    string
	Not    bool
}

func (m In) text(f Family) string {
	not := ""
	if m.Not {
		not = "!= "
	}
	return fieldsText(f, m.Fields) + " " + not + "@" + m.Set
}

func (m In) exprs(f Family) []expr.Any {
	return append(load(f, m.Fields), &expr.Lookup{SourceRegister: firstRegister, SetName: m.Set, Invert: m.Not})
}

// GotoBy goes to the chain that the map has for the fields.
type GotoBy struct {
	Fields []Field
	Map    string
}

func (g GotoBy) text(f Family) string { return fieldsText(f, g.Fields) + " vmap @" + g.Map }

func (g GotoBy) exprs(f Family) []expr.Any {
	return append(load(f, g.Fields), &expr.Lookup{SourceRegister: firstRegister, DestRegister: 0, IsDestRegSet: true,
		SetName: g.Map})
}

// DNATBy translates the destination to the address and port that the map has for
// the fields.
type DNATBy struct {
	Fields []Field
	Map    string
}

func (d DNATBy) text(f Family) string {
	return fmt.Sprintf("dnat %s to %s map @%s", f, fieldsText(f, d.Fields), d.Map)
}

func (d DNATBy) exprs(f Family) []expr.Any {
	port := uint32(firstRegister + f.addrLen()/4)
	return append(load(f, d.Fields),
		&expr.Lookup{SourceRegister: firstRegister, DestRegister: firstRegister, IsDestRegSet: true, SetName: d.Map},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f), RegAddrMin: firstRegister, RegProtoMin: port,
			Specified: true})
}

// DNATToItself keeps the destination, and prevents later chains from translating it.
type DNATToItself struct{}

func (DNATToItself) text(f Family) string { return fmt.Sprintf("dnat to %s daddr", f) }

func (DNATToItself) exprs(f Family) []expr.Any {
	return append(load(f, []Field{Daddr}), &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f),
		RegAddrMin: firstRegister})
}

// SNATTo translates the source to an address of the table's family.
type SNATTo struct{ Addr netip.Addr }

func (s SNATTo) text(Family) string { return "snat to " + s.Addr.String() }

func (s SNATTo) exprs(f Family) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: firstRegister, Data: s.Addr.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f), RegAddrMin: firstRegister}}
}

// Remember adds an element to a Filled map, with other fields as data, or updates its data and timeout.
type Remember struct {
	Key, Data []Field
	Map       string
	For       time.Duration
}

func (r Remember) text(f Family) string {
	return fmt.Sprintf("update @%s { %s timeout %ds : %s }", r.Map, fieldsText(f, r.Key), int(r.For.Seconds()),
		fieldsText(f, r.Data))
}

func (r Remember) exprs(f Family) []expr.Any {
	out, next := loadFrom(f, r.Key, firstRegister)
	data, _ := loadFrom(f, r.Data, next)
	return append(append(out, data...),
		&expr.Dynset{SrcRegKey: firstRegister, SrcRegData: next, SetName: r.Map, Operation: unix.NFT_DYNSET_OP_UPDATE,
			Timeout: r.For})
}

// ProtoIs matches a transport protocol by number.
type ProtoIs uint8

func (p ProtoIs) text(Family) string { return "meta l4proto " + protoText(uint8(p)) }

func (p ProtoIs) exprs(Family) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: firstRegister},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: []byte{byte(p)}}}
}

// LocalDaddr matches packets to an address of this node, LocalSaddr those from one.
type (
	LocalDaddr struct{}
	LocalSaddr struct{}
)

func (LocalDaddr) text(Family) string { return "fib daddr type local" }
func (LocalSaddr) text(Family) string { return "fib saddr type local" }

func (LocalDaddr) exprs(Family) []expr.Any { return isLocal(expr.Fib{FlagDADDR: true}) }
func (LocalSaddr) exprs(Family) []expr.Any { return isLocal(expr.Fib{FlagSADDR: true}) }

func isLocal(of expr.Fib) []expr.Any {
	of.Register, of.ResultADDRTYPE = firstRegister, true
	return []expr.Any{&of,
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: binary.NativeEndian.AppendUint32(nil,
			unix.RTN_LOCAL)}}
}

// FromLinks matches packets that arrived on a link whose name has this prefix.
type FromLinks string

func (l FromLinks) text(Family) string { return fmt.Sprintf("iifname %q", string(l)+"*") }

func (l FromLinks) exprs(Family) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: firstRegister},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: []byte(l)}}
}

// ToLinks matches packets that leave by a link whose name has this prefix.
type ToLinks string

func (l ToLinks) text(Family) string { return fmt.Sprintf("oifname %q", string(l)+"*") }

func (l ToLinks) exprs(Family) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: firstRegister},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: []byte(l)}}
}

// Spoofed matches packets whose source is not routed to the link that they arrived on.
type Spoofed struct{}

func (Spoofed) text(Family) string { return "fib saddr . iif oif 0" }

func (Spoofed) exprs(Family) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: firstRegister, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: make([]byte, 4)}}
}

// Counter counts the packets that reach it.
func Counter() Statement {
	return action{"counter", func(Family) []expr.Any { return []expr.Any{&expr.Counter{}} }}
}

// Within matches an address in a fixed network.
type Within struct {
	Field  Field
	Prefix netip.Prefix
	Not    bool
}

func (w Within) text(f Family) string {
	not := ""
	if w.Not {
		not = "!= "
	}
	return w.Field.text(f) + " " + not + w.Prefix.String()
}

func (w Within) exprs(f Family) []expr.Any {
	out, _ := w.Field.load(f, firstRegister)
	n := f.addrLen()
	mask := make([]byte, n)
	for i := range w.Prefix.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	op := expr.CmpOpEq
	if w.Not {
		op = expr.CmpOpNeq
	}
	return append(out,
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: uint32(n), Mask: mask,
			Xor: make([]byte, n)},
		&expr.Cmp{Op: op, Register: firstRegister, Data: w.Prefix.Masked().Addr().AsSlice()})
}

// NotLoopbackIn matches packets that came by another link than the loopback,
// NotLoopbackOut those that leave by another one.
type (
	NotLoopbackIn  struct{}
	NotLoopbackOut struct{}
)

func (NotLoopbackIn) text(Family) string  { return "iif != 1" }
func (NotLoopbackOut) text(Family) string { return "oif != 1" }

func (NotLoopbackIn) exprs(Family) []expr.Any  { return notLoopback(expr.MetaKeyIIF) }
func (NotLoopbackOut) exprs(Family) []expr.Any { return notLoopback(expr.MetaKeyOIF) }

func notLoopback(key expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: firstRegister},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: firstRegister, Data: binary.NativeEndian.AppendUint32(nil, 1)}}
}

// DportIs matches a destination port.
type DportIs uint16

func (p DportIs) text(Family) string { return fmt.Sprintf("th dport %d", uint16(p)) }

func (p DportIs) exprs(Family) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: firstRegister, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: binary.BigEndian.AppendUint16(nil, uint16(p))}}
}

// VNIIs matches the network identifier of VXLAN, of which only UDP packets to its
// port have one (RFC 7348, section 5).
type VNIIs uint32

func (v VNIIs) text(Family) string { return fmt.Sprintf("@th,96,24 0x%06x", uint32(v)) }

func (v VNIIs) exprs(Family) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: firstRegister, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 3},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: []byte{byte(v >> 16), byte(v >> 8), byte(v)}}}
}

// CtState matches a bit of the connection tracking state (ip_conntrack_info).
type CtState uint32

// States that rules ask for.
const (
	New       CtState = 8
	Untracked CtState = 64
	// Established is established or related.
	Established CtState = 2 | 4
)

func (s CtState) text(Family) string {
	return "ct state " + map[CtState]string{Established: "established,related", New: "new", Untracked: "untracked"}[s]
}

func (s CtState) exprs(Family) []expr.Any { return ctBits(expr.CtKeySTATE, uint32(s)) }

// Translated matches packets of connections whose destination was translated.
type Translated struct{}

func (Translated) text(Family) string { return "ct status dnat" }

func (Translated) exprs(Family) []expr.Any { return ctBits(expr.CtKeySTATUS, 1<<5) } // IPS_DST_NAT

func ctBits(key expr.CtKey, mask uint32) []expr.Any {
	bits, zero := binary.NativeEndian.AppendUint32(nil, mask), make([]byte, 4)
	return []expr.Any{
		&expr.Ct{Key: key, Register: firstRegister},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4, Mask: bits, Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: firstRegister, Data: zero}}
}

// NoCtMark matches packets whose connection's mark has none of the bits.
type NoCtMark uint32

func (m NoCtMark) text(Family) string {
	return fmt.Sprintf("ct mark & 0x%08x == 0x00000000", uint32(m))
}

func (m NoCtMark) exprs(Family) []expr.Any {
	bits, zero := binary.NativeEndian.AppendUint32(nil, uint32(m)), make([]byte, 4)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: firstRegister},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4, Mask: bits, Xor: zero},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: zero}}
}

// IsReply matches packets in the reply direction of their connection.
type IsReply struct{}

func (IsReply) text(Family) string { return "ct direction reply" }

func (IsReply) exprs(Family) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: firstRegister},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: []byte{1}}} // IP_CT_DIR_REPLY
}

// HasMark matches packets with all bits of the mark.
type HasMark uint32

func (m HasMark) text(Family) string {
	return fmt.Sprintf("meta mark & 0x%08x == 0x%08x", uint32(m), uint32(m))
}

func (m HasMark) exprs(Family) []expr.Any {
	bits := binary.NativeEndian.AppendUint32(nil, uint32(m))
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: firstRegister},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4, Mask: bits,
			Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: bits}}
}

// SetMark sets bits of the packet's mark; ClearMark clears them.
type (
	SetMark   uint32
	ClearMark uint32
)

func (m SetMark) text(Family) string {
	return fmt.Sprintf("meta mark set meta mark | 0x%08x", uint32(m))
}

func (m SetMark) exprs(Family) []expr.Any { return changeMark(^uint32(m), uint32(m)) }

func (m ClearMark) text(Family) string {
	return fmt.Sprintf("meta mark set meta mark & 0x%08x", ^uint32(m))
}

func (m ClearMark) exprs(Family) []expr.Any { return changeMark(^uint32(m), 0) }

func changeMark(mask, xor uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: firstRegister},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, mask), Xor: binary.NativeEndian.AppendUint32(nil, xor)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: firstRegister}}
}

// SocketOpen matches packets for which there is a socket here: one that listens,
// is connected, is about to be (SYN received) or was (TIME_WAIT).
type SocketOpen struct{}

// The kernel reports "transparent" for sockets of every state, and "wildcard" only for full sockets: a connection
// whose handshake is not over has none.
func (SocketOpen) text(Family) string { return "socket transparent 0" }

func (SocketOpen) exprs(Family) []expr.Any {
	return []expr.Any{
		&expr.Socket{Key: expr.SocketKeyTransparent, Register: firstRegister},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: []byte{0}}}
}

// SocketOfAnyAddress matches packets whose socket is bound to the wildcard address.
type SocketOfAnyAddress struct{}

func (SocketOfAnyAddress) text(Family) string { return "socket wildcard 1" }

func (SocketOfAnyAddress) exprs(Family) []expr.Any {
	return []expr.Any{
		&expr.Socket{Key: expr.SocketKeyWildcard, Register: firstRegister},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: []byte{1}}}
}

type action struct {
	words string
	build func(f Family) []expr.Any
}

func (a action) text(Family) string        { return a.words }
func (a action) exprs(f Family) []expr.Any { return a.build(f) }

func verdict(words string, kind expr.VerdictKind, chain string) Statement {
	return action{words, func(Family) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}} }}
}

// Goto ends this chain and goes to another.
func Goto(chain string) Statement { return verdict("goto "+chain, expr.VerdictGoto, chain) }

// Accept ends the hook for this table.
func Accept() Statement { return verdict("accept", expr.VerdictAccept, "") }

// ReturnBack goes back behind the jump to this chain; a base chain ends with its policy.
func ReturnBack() Statement { return verdict(Return, expr.VerdictReturn, "") }

// Drop drops the packet.
func Drop() Statement { return verdict("drop", expr.VerdictDrop, "") }

// Masquerade gives the connection the address of the outgoing interface as source.
func Masquerade() Statement {
	return action{"masquerade", func(Family) []expr.Any { return []expr.Any{&expr.Masq{}} }}
}

// Notrack keeps the packet out of connection tracking.
func Notrack() Statement {
	return action{"notrack", func(Family) []expr.Any { return []expr.Any{&expr.Notrack{}} }}
}

// RejectTCP answers with a reset; only behind ProtoIs(6).
func RejectTCP() Statement {
	return action{"reject with tcp reset", func(Family) []expr.Any {
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	}}
}

// Reject answers that the port is unreachable.
func Reject() Statement { return reject{} }

type reject struct{}

func (reject) text(f Family) string {
	if f == IPv6 {
		return "reject with icmpv6 port-unreachable"
	}
	return "reject with icmp port-unreachable"
}

func (reject) exprs(f Family) []expr.Any {
	code := uint8(3) // ICMP_PORT_UNREACH
	if f == IPv6 {
		code = 4 // ICMPV6_PORT_UNREACH
	}
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code}}
}
