package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// dumpBuffer is as much as the kernel gives at once. It matters: for every part
// of a dump the kernel walks the set from its start, so that with a buffer of a
// page, which is what the netlink package has, 100,000 elements take two seconds.
const dumpBuffer = 64 << 10

// dumpTries is how often a dump is tried that a concurrent change interrupts.
const dumpTries = 5

var errInterrupted = errors.New("the set was changed while it was read")

// dump reads the elements of a set.
func (k *Kernel) dump(ctx context.Context, f Family, table string, s Set) ([]Element, error) {
	for try := 1; ; try++ {
		var list []Element
		err := k.dumpOnce(ctx, f, table, s.Name, func(attrs []byte) error {
			e, err := s.element(attrs)
			list = append(list, e)
			return err
		})
		if errors.Is(err, errInterrupted) && try < dumpTries && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("set %s: %w", s.Name, err)
		}
		if s.Interval && len(s.Key) == 1 {
			list = joinRanges(list)
		}
		return list, nil
	}
}

// joinRanges makes ranges of the starts and the ends that the kernel has as elements of
// their own, in the order of its tree.
func joinRanges(list []Element) []Element {
	var starts []Element
	var ends []string
	for _, e := range list {
		if e.Key == "" {
			ends = append(ends, e.End)
		} else {
			starts = append(starts, e)
		}
	}
	slices.SortFunc(starts, func(a, b Element) int { return strings.Compare(a.Key, b.Key) })
	slices.Sort(ends)
	for i, e := range starts {
		for len(ends) > 0 && ends[0] <= e.Key {
			ends = ends[1:]
		}
		if len(ends) > 0 {
			starts[i].End = ends[0]
		}
	}
	return starts
}

// Counted implements Conn.
func (k *Kernel) Counted(ctx context.Context, t Table, set string) (map[string]uint64, error) {
	s, err := t.set(set)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		out := map[string]uint64{}
		err := k.dumpOnce(ctx, t.Family, t.Name, set, func(attrs []byte) error {
			e, err := s.element(attrs)
			out[e.Key] = packets(attrs)
			return err
		})
		if errors.Is(err, errInterrupted) && try < dumpTries && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("nftables: table %s %s: counters of set %s: %w", t.Family, t.Name, set, err)
		}
		return out, nil
	}
}

// packets is what the counter of an element says, 0 where there is none.
func packets(elem []byte) (n uint64) {
	in(elem, unix.NFTA_SET_ELEM_EXPR, func(e []byte) {
		in(e, unix.NFTA_EXPR_DATA, func(data []byte) {
			in(data, unix.NFTA_COUNTER_PACKETS, func(value []byte) {
				if len(value) == 8 {
					n = binary.BigEndian.Uint64(value)
				}
			})
		})
	})
	return n
}

// dumpOnce calls visit for the attributes of every element of a set.
func (k *Kernel) dumpOnce(ctx context.Context, f Family, table, set string, visit func(attrs []byte) error) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netns})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := errors.Join(bigBuffers(c), c.SetDeadline(latest(ctx))); err != nil {
		return err
	}
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: append([]byte(table), 0)},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: append([]byte(set), 0)}})
	if err != nil {
		return err
	}
	_, err = c.Send(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM),
			Flags: netlink.Request | netlink.Dump},
		Data: append([]byte{byte(f), unix.NFNETLINK_V0, 0, 0}, attrs...)})
	if err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	for buf := make([]byte, dumpBuffer); ; {
		var n int
		var inner error
		err := raw.Read(func(fd uintptr) bool {
			n, _, inner = unix.Recvfrom(int(fd), buf, 0)
			return inner != unix.EAGAIN && inner != unix.EINTR
		})
		if err := errors.Join(err, inner); err != nil {
			return err
		}
		if done, err := visitPart(buf[:n], visit); err != nil || done {
			return err
		}
	}
}

// visitPart visits the elements in a part of a dump; done is true with the last.
func visitPart(part []byte, visit func(attrs []byte) error) (done bool, err error) {
	msgs, err := syscall.ParseNetlinkMessage(part)
	if err != nil {
		return false, err
	}
	for _, m := range msgs {
		switch {
		case m.Header.Flags&unix.NLM_F_DUMP_INTR != 0:
			return false, errInterrupted
		case m.Header.Type == unix.NLMSG_DONE:
			return true, nil
		case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
			if code := int32(binary.NativeEndian.Uint32(m.Data)); code < 0 {
				return false, unix.Errno(-code)
			}
			return true, nil
		case len(m.Data) < 4: // struct nfgenmsg
			return false, unix.EBADMSG
		}
		if err := visitElements(m.Data[4:], visit); err != nil {
			return false, err
		}
	}
	return false, nil
}

// visitElements visits those of a message NFT_MSG_NEWSETELEM.
func visitElements(attrs []byte, visit func(attrs []byte) error) error {
	return each(attrs, func(typ uint16, data []byte) error {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return nil
		}
		return each(data, func(_ uint16, data []byte) error { return visit(data) })
	})
}

func (s Set) element(attrs []byte) (e Element, err error) {
	end := false
	err = each(attrs, func(typ uint16, data []byte) error {
		switch typ {
		case unix.NFTA_SET_ELEM_FLAGS:
			end = len(data) == 4 && binary.BigEndian.Uint32(data)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_KEY:
			return each(data, func(_ uint16, value []byte) error { e.Key = string(value); return nil })
		case nftables.NFTA_SET_ELEM_KEY_END:
			return each(data, func(_ uint16, value []byte) error { e.End = string(value); return nil })
		case unix.NFTA_SET_ELEM_DATA:
			return each(data, func(typ uint16, value []byte) error {
				if e.Data = string(value); typ == unix.NFTA_DATA_VERDICT {
					e.Data = verdictData(value)
				}
				return nil
			})
		}
		return nil
	})
	if s.Interval && end {
		// The kernel lists ends in the order of its tree, ends may come first.
		e = Element{End: e.Key}
	}
	return e, err
}

// verdictData is a verdict as the Data of an element, empty for those that we do not use.
func verdictData(attrs []byte) string {
	code, chain := int32(0), ""
	err := each(attrs, func(typ uint16, data []byte) error {
		switch {
		case typ == unix.NFTA_VERDICT_CODE && len(data) == 4:
			code = int32(binary.BigEndian.Uint32(data))
		case typ == unix.NFTA_VERDICT_CHAIN:
			chain = strings.TrimRight(string(data), "\x00")
		}
		return nil
	})
	switch {
	case err != nil:
	case code == unix.NFT_GOTO:
		return chain
	case code == unix.NFT_JUMP:
		return Jump(chain)
	case code == unix.NFT_RETURN:
		return Return
	}
	return ""
}

// each calls fn for every attribute. (netlink.AttributeDecoder does the same, at a
// few allocations each, and there are a million here.)
func each(b []byte, fn func(typ uint16, data []byte) error) error {
	for len(b) >= unix.SizeofNlAttr {
		n, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if n < unix.SizeofNlAttr || n > len(b) {
			return unix.EBADMSG
		}
		if err := fn(typ&^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:n]); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

// in calls fn for the payload, in place, of every attribute of a type.
func in(attrs []byte, kind uint16, fn func([]byte)) {
	_ = each(attrs, func(typ uint16, data []byte) error { // what the kernel sends is well formed
		if typ == kind {
			fn(data)
		}
		return nil
	})
}
