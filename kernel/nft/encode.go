package nft

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// transaction is the messages of one transaction, see nfnetlink_rcv_batch in the kernel's net/netfilter/nfnetlink.c.
type transaction struct {
	messages []netlink.Message
	err      error // of a message that could not be made
}

// add adds a message of nf_tables (NFT_MSG_…).
func (x *transaction) add(kind uint16, flags netlink.HeaderFlags, f Family, a attrs) {
	x.messages = append(x.messages, netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind),
			Flags: netlink.Request | flags},
		Data: append(generic(f, 0), a...)})
}

func (x *transaction) fail(err error) {
	if x.err == nil {
		x.err = err
	}
}

// generic is struct nfgenmsg.
func generic(f Family, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{byte(f), unix.NFNETLINK_V0}, resource)
}

// send has the kernel take all messages or none.
func (x *transaction) send(c *netlink.Conn) error {
	if x.err != nil || len(x.messages) == 0 {
		return x.err
	}
	// An error is answered in any case. The last message asks for an answer also when all is well.
	x.messages[len(x.messages)-1].Header.Flags |= netlink.Acknowledge
	batch := func(kind uint16) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request},
			Data: generic(0, unix.NFNL_SUBSYS_NFTABLES)}
	}
	all := slices.Concat([]netlink.Message{batch(unix.NFNL_MSG_BATCH_BEGIN)}, x.messages,
		[]netlink.Message{batch(unix.NFNL_MSG_BATCH_END)})
	sent, err := c.SendMessages(all)
	if err != nil {
		return err
	}
	last := sent[len(sent)-2].Header.Sequence
	for {
		answers, err := c.Receive()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(answers, func(m netlink.Message) bool { return m.Header.Sequence == last }) {
			return nil
		}
	}
}

// attrs are netlink attributes, one behind the other, each padded to four bytes.
type attrs []byte

func (a attrs) bytes(kind uint16, value []byte) attrs {
	a = binary.NativeEndian.AppendUint16(a, uint16(unix.SizeofNlAttr+len(value)))
	a = append(binary.NativeEndian.AppendUint16(a, kind), value...)
	return a.pad()
}

// text adds a text, which ends with a zero.
func (a attrs) text(kind uint16, value string) attrs {
	a = binary.NativeEndian.AppendUint16(a, uint16(unix.SizeofNlAttr+len(value)+1))
	a = append(append(binary.NativeEndian.AppendUint16(a, kind), value...), 0)
	return a.pad()
}

// value adds packed bytes as they are.
func (a attrs) value(kind uint16, value string) attrs {
	a = binary.NativeEndian.AppendUint16(a, uint16(unix.SizeofNlAttr+len(value)))
	a = append(binary.NativeEndian.AppendUint16(a, kind), value...)
	return a.pad()
}

func (a attrs) number(kind uint16, value uint32) attrs {
	a = binary.NativeEndian.AppendUint16(a, unix.SizeofNlAttr+4)
	return binary.BigEndian.AppendUint32(binary.NativeEndian.AppendUint16(a, kind), value)
}

func (a attrs) pad() attrs {
	for len(a)%4 != 0 {
		a = append(a, 0)
	}
	return a
}

// begin begins an attribute of attributes, which end closes at the place that begin returned.
func (a attrs) begin(kind uint16) (attrs, int) {
	at := len(a)
	a = binary.NativeEndian.AppendUint16(a, 0)
	return binary.NativeEndian.AppendUint16(a, kind|unix.NLA_F_NESTED), at
}

// end writes the length, which is at most 64 KiB: see chunk.
func (a attrs) end(at int) attrs {
	binary.NativeEndian.PutUint16(a[at:], uint16(len(a)-at))
	return a
}

// nest adds an attribute of attributes.
func (a attrs) nest(kind uint16, fill func(attrs) attrs) attrs {
	a, at := a.begin(kind)
	return fill(a).end(at)
}

// The attributes that name a table, and what is in it: NFTA_TABLE_NAME, and NFTA_SET_TABLE with NFTA_SET_NAME and so
// on.
func named(table string) attrs { return attrs(nil).text(unix.NFTA_TABLE_NAME, table) }

func (x *transaction) addTable(t Table) {
	x.add(unix.NFT_MSG_NEWTABLE, netlink.Create, t.Family, named(t.Name).number(unix.NFTA_TABLE_FLAGS, 0))
}

func (x *transaction) delTable(t Table) { x.add(unix.NFT_MSG_DELTABLE, 0, t.Family, named(t.Name)) }

func (x *transaction) addChain(t Table, ch Chain) {
	a := named(t.Name).text(unix.NFTA_CHAIN_NAME, ch.Name)
	if h := ch.Hook; h != nil {
		a = a.nest(unix.NFTA_CHAIN_HOOK, func(a attrs) attrs {
			return a.number(unix.NFTA_HOOK_HOOKNUM, h.number()).number(unix.NFTA_HOOK_PRIORITY, uint32(h.Priority))
		})
		a = a.number(unix.NFTA_CHAIN_POLICY, uint32(nftables.ChainPolicyAccept)).text(unix.NFTA_CHAIN_TYPE, h.Type)
	}
	x.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, t.Family, a)
}

func (x *transaction) delChain(t Table, name string) {
	x.add(unix.NFT_MSG_DELCHAIN, 0, t.Family, named(t.Name).text(unix.NFTA_CHAIN_NAME, name))
}

// flushChain removes all rules of a chain.
func (x *transaction) flushChain(t Table, name string) {
	x.add(unix.NFT_MSG_DELRULE, 0, t.Family, named(t.Name).text(unix.NFTA_RULE_CHAIN, name))
}

func (x *transaction) addRule(t Table, chain string, r Rule) {
	a := named(t.Name).text(unix.NFTA_RULE_CHAIN, chain)
	a, at := a.begin(unix.NFTA_RULE_EXPRESSIONS)
	for _, s := range r {
		for _, e := range s.exprs(t.Family) {
			raw, err := encode(t.Family, e)
			if err != nil {
				x.fail(fmt.Errorf("chain %s: %w", chain, err))
				return
			}
			a = a.bytes(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, raw)
		}
	}
	x.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, t.Family, a.end(at))
}

// encode makes the bytes of an expression. Those of connection tracking are ours, since the library's are wrong in two
// ways: it names the first destination by NFT_CT_DST, whose length nft 1.0.6 does not know and ends with an assertion
// (NFT_CT_DST_IP of kernel 4.18 loads the same); and it writes the direction in four bytes, of which the kernel takes
// the first and complains in its log.
func encode(f Family, e expr.Any) ([]byte, error) {
	ct, ok := e.(*expr.Ct)
	if !ok {
		return expr.Marshal(byte(f), e)
	}
	key := uint32(ct.Key)
	if ct.Key == expr.CtKeyDST {
		key = map[Family]uint32{IPv4: unix.NFT_CT_DST_IP, IPv6: unix.NFT_CT_DST_IP6}[f]
	}
	return attrs(nil).text(unix.NFTA_EXPR_NAME, "ct").nest(unix.NFTA_EXPR_DATA, func(a attrs) attrs {
		a = a.number(unix.NFTA_CT_KEY, key).number(unix.NFTA_CT_DREG, ct.Register)
		if ct.Key == expr.CtKeyDST || ct.Key == expr.CtKeyPROTODST {
			a = a.bytes(unix.NFTA_CT_DIRECTION, []byte{byte(ct.Direction)})
		}
		return a
	}), nil
}

// nftaSetExpr is NFTA_SET_EXPR of the kernel.
const nftaSetExpr = 17

// addSet makes a set. Named sets are found by name; their numbers need to differ in a transaction only.
func (x *transaction) addSet(t Table, s Set, number int) {
	set, err := s.netlink(netlinkTable(t), t.Family)
	if err != nil {
		x.fail(fmt.Errorf("set %s: %w", s.Name, err))
		return
	}
	a := named(t.Name).text(unix.NFTA_SET_NAME, s.Name).number(unix.NFTA_SET_FLAGS, s.flags()).
		number(unix.NFTA_SET_KEY_TYPE, set.KeyType.GetNFTMagic()).number(unix.NFTA_SET_KEY_LEN, set.KeyType.Bytes).
		number(unix.NFTA_SET_ID, uint32(number))
	switch {
	case len(s.Data) == 0:
	case s.Data[0] == Verdict:
		a = a.number(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT).number(unix.NFTA_SET_DATA_LEN, 0)
	default:
		a = a.number(unix.NFTA_SET_DATA_TYPE, set.DataType.GetNFTMagic()).
			number(unix.NFTA_SET_DATA_LEN, set.DataType.Bytes)
	}
	if s.Filled || len(s.Key) > 1 {
		a = a.nest(unix.NFTA_SET_DESC, func(a attrs) attrs { return s.describe(a, set.KeyType) })
	}
	if s.Interval { // as nft does, which prints keys by it
		a = a.bytes(unix.NFTA_SET_USERDATA, userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, 2))
	}
	if s.Counted {
		a = a.nest(nftaSetExpr, func(a attrs) attrs { return a.text(unix.NFTA_EXPR_NAME, "counter") })
	}
	x.add(unix.NFT_MSG_NEWSET, netlink.Create, t.Family, a)
}

// describe tells the size of a set, and the lengths of the parts of its key.
func (s Set) describe(a attrs, key nftables.SetDatatype) attrs {
	if s.Filled {
		a = a.number(unix.NFTA_SET_DESC_SIZE, filledSize)
	}
	if len(s.Key) == 1 {
		return a
	}
	return a.nest(nftables.NFTA_SET_DESC_CONCAT, func(a attrs) attrs {
		for _, part := range nftables.ConcatSetTypeElements(key) {
			a = a.nest(unix.NFTA_LIST_ELEM, func(a attrs) attrs { // NFTA_SET_FIELD_LEN
				return a.number(unix.NFTA_DATA_VALUE, part.Bytes)
			})
		}
		return a
	})
}

func (s Set) flags() (flags uint32) {
	for flag, on := range map[uint32]bool{unix.NFT_SET_INTERVAL: s.Interval, unix.NFT_SET_MAP: len(s.Data) > 0,
		unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL: s.Filled, nftables.NFT_SET_CONCAT: len(s.Key) > 1} {
		if on {
			flags |= flag
		}
	}
	return flags
}

func (x *transaction) delSet(t Table, name string) {
	x.add(unix.NFT_MSG_DELSET, 0, t.Family, named(t.Name).text(unix.NFTA_SET_NAME, name))
}

// flushSet removes all elements of a set.
func (x *transaction) flushSet(t Table, name string) {
	x.add(unix.NFT_MSG_DELSETELEM, 0, t.Family, named(t.Name).text(unix.NFTA_SET_ELEM_LIST_SET, name))
}

// chunk is how many elements one message holds: an attribute of it is limited to
// 64 KiB.
const chunk = 400

// elementSize is more than most elements take.
const elementSize = 96

// elements adds elements to a set, or deletes them (NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM).
func (x *transaction) elements(kind uint16, flags netlink.HeaderFlags, t Table, s Set, list []Element) {
	for part := range slices.Chunk(list, chunk) {
		a := make(attrs, 0, 64+len(t.Name)+len(s.Name)+len(part)*elementSize)
		a = a.text(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name).text(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		a, at := a.begin(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		for _, e := range part {
			a = a.element(s, e)
		}
		if len(a)-at > math.MaxUint16 {
			x.fail(fmt.Errorf("set %s: %d elements are %d bytes, which is more than one message takes",
				s.Name, len(part),
				len(a)-at))
		}
		x.add(kind, flags, t.Family, a.end(at))
	}
}

// element adds an element. A range of a key of one part is two: its start, and its end.
func (a attrs) element(s Set, e Element) attrs {
	a, at := a.begin(unix.NFTA_LIST_ELEM)
	a = a.key(unix.NFTA_SET_ELEM_KEY, e.Key)
	if s.Interval && len(s.Key) > 1 {
		a = a.key(nftables.NFTA_SET_ELEM_KEY_END, e.End)
	}
	switch {
	case len(s.Data) == 0:
	case s.Data[0] == Verdict:
		a = a.verdict(verdictOf(e.Data))
	default:
		a = a.key(unix.NFTA_SET_ELEM_DATA, e.Data)
	}
	a = a.end(at)
	if s.Interval && len(s.Key) == 1 && e.End != "" {
		a, at = a.begin(unix.NFTA_LIST_ELEM)
		a = a.number(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END).key(unix.NFTA_SET_ELEM_KEY,
			e.End).end(at)
	}
	return a
}

// key adds packed bytes as data.
func (a attrs) key(kind uint16, packed string) attrs {
	a, at := a.begin(kind)
	return a.value(unix.NFTA_DATA_VALUE, packed).end(at)
}

// verdict adds a verdict as data.
func (a attrs) verdict(v *expr.Verdict) attrs {
	a, data := a.begin(unix.NFTA_SET_ELEM_DATA)
	a, at := a.begin(unix.NFTA_DATA_VERDICT)
	a = a.number(unix.NFTA_VERDICT_CODE, uint32(v.Kind))
	if v.Chain != "" {
		a = a.text(unix.NFTA_VERDICT_CHAIN, v.Chain)
	}
	return a.end(at).end(data)
}
