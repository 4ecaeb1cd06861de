package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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

// dumpTries is how often a dump is begun that a change by somebody else broke.
const dumpTries = 5

var errInterrupted = errors.New("the set was changed while it was read")

// dump reads the elements of a set.
func (k *Kernel) dump(ctx context.Context, f Family, table string, s Set) ([]Element, error) {
	for try := 1; ; try++ {
		list, err := k.dumpOnce(ctx, f, table, s)
		if errors.Is(err, errInterrupted) && try < dumpTries && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("set %s: %w", s.Name, err)
		}
		return list, nil
	}
}

func (k *Kernel) dumpOnce(ctx context.Context, f Family, table string, s Set) ([]Element, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netns})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := errors.Join(bigBuffers(c), c.SetDeadline(latest(ctx))); err != nil {
		return nil, err
	}
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: append([]byte(table), 0)},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: append([]byte(s.Name), 0)}})
	if err != nil {
		return nil, err
	}
	_, err = c.Send(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM), Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(f), unix.NFNETLINK_V0, 0, 0}, attrs...)})
	if err != nil {
		return nil, err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var list []Element
	for buf := make([]byte, dumpBuffer); ; {
		var n int
		var inner error
		err := raw.Read(func(fd uintptr) bool {
			n, _, inner = unix.Recvfrom(int(fd), buf, 0)
			return inner != unix.EAGAIN && inner != unix.EINTR
		})
		if err := errors.Join(err, inner); err != nil {
			return nil, err
		}
		done := false
		if list, done, err = s.appendPart(list, buf[:n]); err != nil || done {
			return list, err
		}
	}
}

// appendPart adds the elements in a part of a dump; done is true with the last.
func (s Set) appendPart(list []Element, part []byte) (_ []Element, done bool, err error) {
	msgs, err := syscall.ParseNetlinkMessage(part)
	if err != nil {
		return list, false, err
	}
	for _, m := range msgs {
		switch {
		case m.Header.Flags&unix.NLM_F_DUMP_INTR != 0:
			return list, false, errInterrupted
		case m.Header.Type == unix.NLMSG_DONE:
			return list, true, nil
		case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
			if code := int32(binary.NativeEndian.Uint32(m.Data)); code < 0 {
				return list, false, unix.Errno(-code)
			}
			return list, true, nil
		case len(m.Data) < 4: // struct nfgenmsg
			return list, false, unix.EBADMSG
		}
		if list, err = s.appendElements(list, m.Data[4:]); err != nil {
			return list, false, err
		}
	}
	return list, false, nil
}

// appendElements decodes a message NFT_MSG_NEWSETELEM.
func (s Set) appendElements(list []Element, attrs []byte) ([]Element, error) {
	return list, each(attrs, func(typ uint16, data []byte) error {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return nil
		}
		return each(data, func(_ uint16, data []byte) error {
			e, err := s.element(data)
			list = append(list, e)
			return err
		})
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
					e.Data = gotoChain(value)
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

// gotoChain is where a verdict goes to, empty for any other verdict.
func gotoChain(attrs []byte) string {
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
	if err != nil || code != unix.NFT_GOTO {
		return ""
	}
	return chain
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
