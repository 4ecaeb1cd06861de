package nft

import (
	"encoding/binary"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"
)

// wire sends what the library makes, and answers with what the kernel says. What the
// library has no word for is put right on the way, see originalKeys.
func wire(raw *netlink.Conn) nltest.Func {
	return func(req []netlink.Message) ([]netlink.Message, error) {
		if len(req) == 0 { // the library waits for an answer
			return raw.Receive()
		}
		for _, m := range req {
			if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE && len(m.Data) > 4 {
				originalKeys(m.Data[0], m.Data[4:])
			}
		}
		_, err := raw.SendMessages(req)
		return nil, err
	}
}

// originalKeys has rules name the address of a connection's first packet by the key that
// knows its length (NFT_CT_DST_IP, kernel 4.18): what it loads is the same, but the
// program nft cannot list a rule with NFT_CT_DST among other fields, and ends with an
// assertion (1.0.6). The library's words have a direction only for the latter.
func originalKeys(family byte, attrs []byte) {
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
			})
		})
	})
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
