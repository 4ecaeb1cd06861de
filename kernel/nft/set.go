package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Type is the type of a part of a key or of data.
type Type uint8

// The types in use.
const (
	// Addr is an address of the table's family.
	Addr Type = iota
	// Proto is a transport protocol.
	Proto
	// Port is a transport port.
	Port
	// Index is a number.
	Index
	// Verdict is a chain to go to, or another verdict, see Jump; only as the whole data
	// of a map.
	Verdict
)

// Set is a named set, or a map when Data is not empty.
type Set struct {
	Name string
	Key  []Type
	Data []Type
	// Interval sets hold ranges; of a key of several parts the range is of the last one,
	// an Addr or a Port.
	Interval bool
	// Filled sets are filled only by rules (Remember), each element for a time. Read leaves them out.
	Filled bool
	// Counted sets count the packets that a rule finds in them, by element, see Conn.Counted. A count lives as long as
	// its element.
	Counted bool
}

// filledSize is the most elements of a Filled set: packets must not exhaust the memory.
const filledSize = 1 << 18

// Element is a member of a set. Key and Data are as Pack makes them, so that
// elements can be compared and be keys of Go maps.
type Element struct {
	Key string
	// End is the first key after the range, of an Interval set only. Where the key has
	// several parts it is the last one in the range.
	End string
	// Data is packed, or where the set's data is Verdict the name of a chain to go to, or
	// what Jump returns, or Return.
	Data string
}

// Return is the Data of an element that returns from the chain. No chain can have that name.
const Return = "return"

// Jump is the Data of an element that jumps to a chain, which returns.
func Jump(chain string) string { return jump + chain }

const jump = "jump "

// verdictOf returns the verdict in the data of an element.
func verdictOf(data string) *expr.Verdict {
	if chain, ok := strings.CutPrefix(data, jump); ok {
		return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}
	}
	if data == Return {
		return &expr.Verdict{Kind: expr.VerdictReturn}
	}
	return &expr.Verdict{Kind: expr.VerdictGoto, Chain: data}
}

// Pack makes the bytes of a key or of data. Parts are netip.Addr, uint8 (Proto),
// uint16 (Port) or uint32 (Index); each is padded to four bytes.
func Pack(parts ...any) string {
	var b []byte
	for _, p := range parts {
		switch v := p.(type) {
		case netip.Addr:
			b = append(b, v.AsSlice()...)
		case uint8:
			b = append(b, v, 0, 0, 0)
		case uint16:
			b = binary.BigEndian.AppendUint16(b, v)
			b = append(b, 0, 0)
		case uint32:
			b = binary.NativeEndian.AppendUint32(b, v)
		default:
			panic(fmt.Sprintf("nft: a %T cannot be packed", p)) // a bug of the caller, found by any test
		}
	}
	return string(b)
}

// Range is the element of an Interval set that holds a prefix.
func Range(p netip.Prefix) Element {
	p = p.Masked()
	end := ""
	if next := last(p).Next(); next.IsValid() {
		end = Pack(next)
	}
	return Element{Key: Pack(p.Addr()), End: end}
}

// Between is the element of an Interval set that holds the addresses from first to last,
// both included.
func Between(first, last netip.Addr) Element {
	e := Element{Key: Pack(first)}
	if next := last.Next(); next.IsValid() {
		e.End = Pack(next)
	}
	return e
}

// RangeOf is the element of an Interval set whose key has other parts before the
// prefix.
func RangeOf(p netip.Prefix, parts ...any) Element {
	p = p.Masked()
	return Element{Key: Pack(append(slices.Clone(parts), p.Addr())...),
		End: Pack(append(slices.Clone(parts), last(p))...)}
}

func last(p netip.Prefix) netip.Addr {
	raw := p.Addr().AsSlice()
	for i := p.Bits(); i < len(raw)*8; i++ {
		raw[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(raw)
	return a
}

func (t Type) datatype(f Family) nftables.SetDatatype {
	switch t {
	case Proto:
		return nftables.TypeInetProto
	case Port:
		return nftables.TypeInetService
	case Index:
		return nftables.TypeMark
	case Verdict:
		return nftables.TypeVerdict
	}
	if f == IPv6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

func (t Type) text(f Family) string {
	switch t {
	case Proto:
		return "inet_proto"
	case Port:
		return "inet_service"
	case Index:
		return "mark"
	case Verdict:
		return "verdict"
	}
	if f == IPv6 {
		return "ipv6_addr"
	}
	return "ipv4_addr"
}

func (t Type) len(f Family) int {
	if t == Addr {
		return f.addrLen()
	}
	return 4
}

func concat(types []Type, f Family) (nftables.SetDatatype, error) {
	if len(types) == 1 {
		return types[0].datatype(f), nil
	}
	parts := make([]nftables.SetDatatype, len(types))
	for i, t := range types {
		parts[i] = t.datatype(f)
	}
	return nftables.ConcatSetType(parts...)
}

// netlink makes the library's form of the set.
func (s Set) netlink(t *nftables.Table, f Family) (*nftables.Set, error) {
	key, err := concat(s.Key, f)
	if err != nil {
		return nil, fmt.Errorf("set %s: key: %w", s.Name, err)
	}
	out := &nftables.Set{Table: t, Name: s.Name, KeyType: key, Interval: s.Interval, Concatenation: len(s.Key) > 1}
	if s.Filled {
		out.Dynamic, out.HasTimeout, out.Size = true, true, filledSize
	}
	out.Counter = s.Counted
	if len(s.Data) > 0 {
		out.IsMap = true
		if out.DataType, err = concat(s.Data, f); err != nil {
			return nil, fmt.Errorf("map %s: data: %w", s.Name, err)
		}
	}
	return out, nil
}

// text is the declaration, with elements.
func (s Set) text(b *strings.Builder, f Family, elements []Element) {
	word := "set"
	name := Type.text
	kind := "type"
	if slices.Contains(s.Key, Index) { // nft has no name for the type of a plain number
		kind, name = "typeof", Type.typeof
	}
	types := join(s.Key, f, name)
	if len(s.Data) > 0 {
		word = "map"
		types += " : " + join(s.Data, f, name)
	}
	fmt.Fprintf(b, "\t%s %s {\n\t\t%s %s\n", word, s.Name, kind, types)
	if s.Interval {
		b.WriteString("\t\tflags interval\n")
	}
	if s.Filled {
		fmt.Fprintf(b, "\t\tsize %d\n\t\tflags dynamic,timeout\n", filledSize)
	}
	if s.Counted {
		b.WriteString("\t\tcounter\n")
	}
	if len(elements) > 0 {
		b.WriteString("\t\telements = {\n")
		for i, e := range elements {
			comma := ","
			if i == len(elements)-1 {
				comma = ""
			}
			fmt.Fprintf(b, "\t\t\t%s%s\n", s.elementText(f, e), comma)
		}
		b.WriteString("\t\t}\n")
	}
	b.WriteString("\t}\n")
}

func (s Set) elementText(f Family, e Element) string {
	data := ""
	switch {
	case len(s.Data) == 0:
	case s.Data[0] == Verdict:
		data = " : " + verdictText(e.Data)
	default:
		data = " : " + unpack(s.Data, f, e.Data)
	}
	return s.keyText(f, e) + data
}

func verdictText(data string) string {
	if data == Return || strings.HasPrefix(data, jump) {
		return data
	}
	return "goto " + data
}

func (s Set) keyText(f Family, e Element) string {
	if s.Interval {
		n := len(s.Key) - 1
		if n == 0 {
			return rangeText(e)
		}
		if s.Key[n] == Port {
			out := unpack(s.Key, f, e.Key)
			if e.End != e.Key && len(e.End) > 4 {
				out += "-" + unpack(s.Key[n:], f, e.End[len(e.End)-4:])
			}
			return out
		}
		head := unpack(s.Key[:n], f, e.Key)
		if len(e.Key) < f.addrLen() || len(e.End) != len(e.Key) {
			return head + " . ?"
		}
		first, _ := netip.AddrFromSlice([]byte(e.Key[len(e.Key)-f.addrLen():]))
		end, _ := netip.AddrFromSlice([]byte(e.End[len(e.End)-f.addrLen():]))
		for bits := range first.BitLen() + 1 {
			if p := netip.PrefixFrom(first, bits); p == p.Masked() && last(p) == end {
				return head + " . " + p.String()
			}
		}
		return head + " . " + first.String() + "-" + end.String()
	}
	return unpack(s.Key, f, e.Key)
}

// rangeText prints a range as a prefix, where it is one.
func rangeText(e Element) string {
	first, _ := netip.AddrFromSlice([]byte(e.Key))
	for bits := first.BitLen(); bits >= 0; bits-- {
		if p := netip.PrefixFrom(first, bits); p == p.Masked() && Range(p).End == e.End {
			return p.String()
		}
	}
	end := slices.Repeat([]byte{0xff}, first.BitLen()/8)
	if after, ok := netip.AddrFromSlice([]byte(e.End)); ok {
		return first.String() + "-" + after.Prev().String()
	}
	last, _ := netip.AddrFromSlice(end)
	return first.String() + "-" + last.String()
}

// typeof names the type by an expression that has it.
func (t Type) typeof(f Family) string {
	switch t {
	case Proto:
		return "meta l4proto"
	case Port:
		return "th dport"
	case Index:
		return "numgen random mod 2"
	}
	return f.String() + " daddr"
}

func join(types []Type, f Family, name func(Type, Family) string) string {
	var parts []string
	for _, t := range types {
		parts = append(parts, name(t, f))
	}
	return strings.Join(parts, " . ")
}

// unpack prints packed bytes.
func unpack(types []Type, f Family, packed string) string {
	var parts []string
	for _, t := range types {
		n := t.len(f)
		if len(packed) < n {
			return "?"
		}
		raw := []byte(packed[:n])
		packed = packed[n:]
		switch t {
		case Addr:
			a, _ := netip.AddrFromSlice(raw)
			parts = append(parts, a.String())
		case Proto:
			parts = append(parts, protoText(raw[0]))
		case Port:
			parts = append(parts, fmt.Sprint(binary.BigEndian.Uint16(raw)))
		case Index:
			parts = append(parts, fmt.Sprint(binary.NativeEndian.Uint32(raw)))
		}
	}
	return strings.Join(parts, " . ")
}

func protoText(p uint8) string {
	switch p {
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 132:
		return "sctp"
	}
	return fmt.Sprint(p)
}

// Disjoint leaves out prefixes that lie in another one: the kernel takes no
// overlapping ranges.
func Disjoint(all []netip.Prefix) []netip.Prefix {
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []netip.Prefix
	for _, p := range sorted {
		if n := len(out); n > 0 && out[n-1].Overlaps(p) {
			continue
		}
		out = append(out, p)
	}
	return out
}
