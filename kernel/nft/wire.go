package nft

import (
	"encoding/binary"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"
)

// wire sends what the library makes, and answers with what the kernel says. What the
// library has no word for is put right on the way, see correct.
func wire(raw *netlink.Conn) nltest.Func {
	return func(req []netlink.Message) ([]netlink.Message, error) {
		if len(req) == 0 { // the library waits for an answer
			return raw.Receive()
		}
		for _, m := range req {
			if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE && len(m.Data) > 4 {
				correct(m.Data[0], m.Data[4:])
			}
		}
		_, err := raw.SendMessages(req)
		return nil, err
	}
}

// correct puts the words for the first packet of a connection (ct original) right, in
// place. The address is named by the key that knows its length (NFT_CT_DST_IP, kernel
// 4.18): what it loads is the same, but the program nft cannot list a rule with
// NFT_CT_DST among other fields, and ends with an assertion (1.0.6); the library's words
// have a direction only for the latter. And the direction is a number of one byte, for
// which the library writes four: the kernel takes the first of them, and complains in its
// log ("attribute type 3 has an invalid length").
func correct(family byte, attrs []byte) {
	sized := uint32(unix.NFT_CT_DST_IP)
	if family == byte(IPv6) {
		sized = unix.NFT_CT_DST_IP6
	}
	in(attrs, unix.NFTA_RULE_EXPRESSIONS, func(list []byte) {
		in(list, unix.NFTA_LIST_ELEM, func(e []byte) {
			ct := false
			in(e, unix.NFTA_EXPR_NAME, func(name []byte) { ct = string(name) == "ct\x00" })
			if !ct {
				return
			}
			in(e, unix.NFTA_EXPR_DATA, func(data []byte) {
				in(data, unix.NFTA_CT_KEY, func(key []byte) {
					if len(key) == 4 && binary.BigEndian.Uint32(key) == unix.NFT_CT_DST {
						binary.BigEndian.PutUint32(key, sized)
					}
				})
				oneByte(data, unix.NFTA_CT_DIRECTION)
			})
		})
	})
}

// oneByte shortens attributes of a type from four bytes, as of a number in network
// order, to one; what is left of them is padding.
func oneByte(attrs []byte, kind uint16) {
	for b := attrs; len(b) >= unix.SizeofNlAttr; {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return
		}
		if binary.NativeEndian.Uint16(b[2:]) == kind && n == unix.SizeofNlAttr+4 {
			binary.NativeEndian.PutUint16(b, unix.SizeofNlAttr+1)
			v := b[unix.SizeofNlAttr:n]
			v[0], v[3] = v[3], 0
		}
		b = b[min((n+3)&^3, len(b)):]
	}
}

// in calls fn for the payload, in place, of every attribute of a type.
func in(attrs []byte, kind uint16, fn func([]byte)) {
	_ = each(attrs, func(typ uint16, data []byte) error { // what the library made is whole
		if typ == kind {
			fn(data)
		}
		return nil
	})
}
