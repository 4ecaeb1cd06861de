package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	vnl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Tuple is one direction of a flow. Protocols without ports have the ports 0.
type Tuple struct{ Src, Dst netip.AddrPort }

// Tracked is a flow of connection tracking.
type Tracked struct {
	Protocol uint8
	// Original is the tuple of the first packet, Reply that of its answer: the backend is Reply.Src, after translation.
	Original, Reply Tuple
	Mark            uint32
	// Expected flows were announced by another one, as FTP announces its data connection.
	Expected bool

	// family, tuple and zone identify the flow to the kernel, in its own encoding.
	family      byte
	tuple, zone []byte
}

// Marker reads flows and marks them.
type Marker interface {
	// Each calls visit for every flow that has one of the bits in its mark, or with 0 for
	// every flow. It ends with the first error of visit.
	Each(ctx context.Context, bits uint32, visit func(Tracked) error) error
	// SetMark sets the bits in mask of the flow's mark to value, and leaves the others unchanged. A flow that has ended
	// is no error.
	SetMark(ctx context.Context, flow Tracked, value, mask uint32) error
	// Own returns the addresses of the node itself.
	Own(ctx context.Context) (map[netip.Addr]bool, error)
}

var _ Marker = (*Tracker)(nil)

// Tracker is the Marker of a network namespace. Its methods may be called concurrently.
type Tracker struct{ netns int }

// NewTracker makes a Marker for the namespace of this process, or with a descriptor other
// than 0 for that one.
func NewTracker(nsfd int) *Tracker { return &Tracker{nsfd} }

// Attributes that the library has no name for (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctaTupleMaster = 14
	ctaMarkMask    = 21
)

const (
	// slow is how long one conversation with the kernel may take at the most.
	slow = time.Minute
	// buffer is the size of one read of a dump, in bytes.
	buffer = 64 << 10
)

func (t *Tracker) dial(ctx context.Context) (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: t.netns})
	if err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	at := time.Now().Add(slow)
	if d, ok := ctx.Deadline(); ok && d.Before(at) {
		at = d
	}
	if err := c.SetDeadline(at); err != nil {
		return nil, errors.Join(fmt.Errorf("conntrack: %w", err), c.Close())
	}
	return c, nil
}

func message(kind, family byte, flags netlink.HeaderFlags, attrs []netlink.Attribute) (netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return netlink.Message{}, fmt.Errorf("conntrack: %w", err)
	}
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | uint16(kind)),
			Flags: netlink.Request | flags},
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, data...)}, nil
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// Each implements Marker.
func (t *Tracker) Each(ctx context.Context, bits uint32, visit func(Tracked) error) error {
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if err := t.each(ctx, family, bits, visit); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tracker) each(ctx context.Context, family byte, bits uint32, visit func(Tracked) error) error {
	c, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var attrs []netlink.Attribute
	if bits != 0 {
		attrs = []netlink.Attribute{{Type: nl.CTA_MARK, Data: be32(bits)}, {Type: ctaMarkMask, Data: be32(bits)}}
	}
	msg, err := message(nl.IPCTNL_MSG_CT_GET, family, netlink.Dump, attrs)
	if err != nil {
		return err
	}
	if _, err := c.Send(msg); err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	for buf := make([]byte, buffer); ; {
		var n int
		var inner error
		err := raw.Read(func(fd uintptr) bool {
			n, _, inner = unix.Recvfrom(int(fd), buf, 0)
			return inner != unix.EAGAIN && inner != unix.EINTR
		})
		if err := errors.Join(err, inner); err != nil {
			return fmt.Errorf("conntrack: %w", err)
		}
		if done, err := part(buf[:n], family, bits, visit); err != nil || done {
			return err
		}
	}
}

// part visits the flows in a part of a dump; done is true with the last.
func part(raw []byte, family byte, bits uint32, visit func(Tracked) error) (done bool, err error) {
	msgs, err := syscall.ParseNetlinkMessage(raw)
	if err != nil {
		return false, fmt.Errorf("conntrack: %w", err)
	}
	for _, m := range msgs {
		switch {
		case m.Header.Type == unix.NLMSG_DONE:
			return true, nil
		case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
			if code := int32(binary.NativeEndian.Uint32(m.Data)); code < 0 {
				return false, fmt.Errorf("conntrack: %w", unix.Errno(-code))
			}
			return true, nil
		case len(m.Data) < 4: // struct nfgenmsg
			return false, fmt.Errorf("conntrack: %w", unix.EBADMSG)
		}
		flow, err := parse(m.Data[4:])
		if err != nil {
			return false, err
		}
		flow.family = family
		if bits != 0 && flow.Mark&bits == 0 {
			continue // the kernel's filter is one of all bits
		}
		if err := visit(flow); err != nil {
			return false, err
		}
	}
	return false, nil
}

// parse reads the attributes of a flow.
func parse(attrs []byte) (t Tracked, err error) {
	ad, err := netlink.NewAttributeDecoder(attrs)
	if err != nil {
		return t, fmt.Errorf("conntrack: a flow: %w", err)
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case nl.CTA_TUPLE_ORIG:
			t.tuple = ad.Bytes()
			ad.Nested(func(d *netlink.AttributeDecoder) error { return t.Original.parse(d, &t.Protocol) })
		case nl.CTA_TUPLE_REPLY:
			ad.Nested(func(d *netlink.AttributeDecoder) error { return t.Reply.parse(d, &t.Protocol) })
		case nl.CTA_MARK:
			t.Mark = ad.Uint32()
		case nl.CTA_ZONE:
			t.zone = ad.Bytes()
		case ctaTupleMaster:
			t.Expected = true
		}
	}
	if err := ad.Err(); err != nil {
		return t, fmt.Errorf("conntrack: a flow: %w", err)
	}
	return t, nil
}

func (t *Tuple) parse(ad *netlink.AttributeDecoder, proto *uint8) error {
	var src, dst netip.Addr
	var sport, dport uint16
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case nl.CTA_TUPLE_IP:
			ad.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					a, _ := netip.AddrFromSlice(d.Bytes())
					switch d.Type() {
					case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
						src = a
					case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
						dst = a
					}
				}
				return nil
			})
		case nl.CTA_TUPLE_PROTO:
			ad.Nested(func(d *netlink.AttributeDecoder) error {
				d.ByteOrder = binary.BigEndian
				for d.Next() {
					switch d.Type() {
					case nl.CTA_PROTO_NUM:
						*proto = d.Uint8()
					case nl.CTA_PROTO_SRC_PORT:
						sport = d.Uint16()
					case nl.CTA_PROTO_DST_PORT:
						dport = d.Uint16()
					}
				}
				return nil
			})
		}
	}
	t.Src, t.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return nil
}

// SetMark implements Marker.
func (t *Tracker) SetMark(ctx context.Context, flow Tracked, value, mask uint32) error {
	c, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	attrs := []netlink.Attribute{{Type: nl.CTA_TUPLE_ORIG | unix.NLA_F_NESTED, Data: flow.tuple},
		{Type: nl.CTA_MARK, Data: be32(value & mask)}, {Type: ctaMarkMask, Data: be32(mask)}}
	if len(flow.zone) > 0 {
		attrs = append(attrs, netlink.Attribute{Type: nl.CTA_ZONE, Data: flow.zone})
	}
	// Without the flag Create, a flow that has ended is not created again.
	msg, err := message(nl.IPCTNL_MSG_CT_NEW, flow.family, netlink.Acknowledge, attrs)
	if err != nil {
		return err
	}
	if _, err := c.Execute(msg); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("conntrack: mark the flow from %s to %s: %w", flow.Original.Src, flow.Original.Dst, err)
	}
	return nil
}

// Own implements Marker.
func (t *Tracker) Own(context.Context) (map[netip.Addr]bool, error) {
	var h *vnl.Handle
	var err error
	if t.netns != 0 {
		h, err = vnl.NewHandleAt(netns.NsHandle(t.netns), unix.NETLINK_ROUTE)
	} else {
		h, err = vnl.NewHandle(unix.NETLINK_ROUTE)
	}
	if err != nil {
		return nil, fmt.Errorf("addresses of the node: %w", err)
	}
	defer h.Close()
	list, err := h.AddrList(nil, vnl.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresses of the node: %w", err)
	}
	own := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			own[ip.Unmap()] = true
		}
	}
	return own, nil
}

// FakeMarker is a Marker of flows in memory.
type FakeMarker struct {
	Flows []Tracked
	Addrs []netip.Addr
}

var _ Marker = (*FakeMarker)(nil)

// Each implements Marker.
func (f *FakeMarker) Each(_ context.Context, bits uint32, visit func(Tracked) error) error {
	for _, x := range f.Flows {
		if bits == 0 || x.Mark&bits != 0 {
			if err := visit(x); err != nil {
				return err
			}
		}
	}
	return nil
}

// SetMark implements Marker.
func (f *FakeMarker) SetMark(_ context.Context, flow Tracked, value, mask uint32) error {
	for i, x := range f.Flows {
		if x.Original == flow.Original && x.Protocol == flow.Protocol {
			f.Flows[i].Mark = x.Mark&^mask | value&mask
		}
	}
	return nil
}

// Own implements Marker.
func (f *FakeMarker) Own(context.Context) (map[netip.Addr]bool, error) {
	own := map[netip.Addr]bool{}
	for _, a := range f.Addrs {
		own[a] = true
	}
	return own, nil
}
