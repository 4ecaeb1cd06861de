package upstream

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"wayleave.dev/proxy/authority"
	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/schema"
)

// Origin is a client that the PROXY protocol (haproxy's doc/proxy-protocol.txt) announces to an endpoint. A connection
// that began with it carries only that client's requests. The zero Origin is not sent.
type Origin struct {
	// Version of the header, 1 or 2; 0 for none.
	Version uint8
	// Client is the source of the request, with port 0 if only the address is known; Local is its destination.
	Client, Local netip.AddrPort
	// TLS configures TLS to the endpoint; a connection is used only for requests with the same configuration.
	TLS *schema.EndpointTLS
	// Authority and Certificate are the current values for the keys in TLS; nil for none. A connection that was opened
	// with other values is not used.
	Authority   *authority.Set
	Certificate *tls.Certificate
}

// proxySignature begins version 2.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// AppendHeader appends the header.
func (o Origin) AppendHeader(b []byte) []byte {
	src, dst := o.Client.Addr().Unmap().WithZone(""), o.Local.Addr().Unmap().WithZone("")
	if !dst.IsValid() {
		dst = netip.IPv4Unspecified()
	}
	if src.Is4() != dst.Is4() { // a header needs one family
		src, dst = netip.AddrFrom16(src.As16()), netip.AddrFrom16(dst.As16())
	}
	if o.Version == 1 {
		family := "TCP4"
		if src.Is6() {
			family = "TCP6"
		}
		return fmt.Appendf(b, "PROXY %s %s %s %d %d\r\n", family, src, dst, o.Client.Port(), o.Local.Port())
	}
	family, size := byte(0x11), uint16(12)
	if src.Is6() {
		family, size = 0x21, 36
	}
	b = append(append(b, proxySignature...), 0x21, family)
	b = binary.BigEndian.AppendUint16(b, size)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, o.Client.Port())
	return binary.BigEndian.AppendUint16(b, o.Local.Port())
}

// Bounds of connections for single clients: few of them are reused.
const (
	originIdle = 10 * time.Second
	originMost = 256
)

// kept is an idle connection of one client.
type kept struct {
	origin    Origin
	encrypted bool
	c         *h1.Client
}

// GetFor is Get for a connection that announces a client to the endpoint; it is Get if o is zero.
func (e *Endpoint) GetFor(ctx context.Context, o Origin, encrypted, sure bool, timeout time.Duration) (c *h1.Client,
	reused bool, err error) {
	if o == (Origin{}) {
		return e.Get(ctx, encrypted, sure, timeout)
	}
	for !sure {
		c := e.keptFor(o, encrypted)
		if c == nil {
			break
		}
		if time.Since(c.IdleSince) > originIdle || !c.Alive() {
			_ = c.Close()
			continue
		}
		return c, true, nil
	}
	c, err = e.fresh(ctx, o, encrypted, timeout)
	return c, false, err
}

// keptFor takes the most recently used idle connection of a client; nil if there is none.
func (e *Endpoint) keptFor(o Origin, encrypted bool) *h1.Client {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := len(e.kept) - 1; i >= 0; i-- {
		if k := e.kept[i]; k.origin == o && k.encrypted == encrypted {
			last := len(e.kept) - 1
			copy(e.kept[i:], e.kept[i+1:])
			e.kept[last] = kept{}
			e.kept = e.kept[:last]
			return k.c
		}
	}
	return nil
}

// PutFor is Put for a connection of GetFor. If there are too many, the least recently used one is closed.
func (e *Endpoint) PutFor(c *h1.Client, o Origin, encrypted bool) {
	if o == (Origin{}) {
		e.Put(c, encrypted)
		return
	}
	c.IdleSince = time.Now()
	over := c
	e.mu.Lock()
	if most := min(originMost, e.set.settings.IdlePerEndpoint); !e.gone && most > 0 {
		over = nil
		if len(e.kept) >= most {
			over = e.kept[0].c
			e.kept = append(e.kept[:0], e.kept[1:]...)
		}
		e.kept = append(e.kept, kept{o, encrypted, c})
	}
	e.mu.Unlock()
	if over != nil {
		_ = over.Close()
	}
}

// DialFor opens a connection, which begins with a PROXY header if o is not zero.
func (e *Endpoint) DialFor(ctx context.Context, o Origin, encrypted bool, protocols ...string) (net.Conn, error) {
	conn, err := e.dial(ctx)
	if err != nil {
		return nil, err
	}
	if o.Version != 0 {
		if err := o.introduce(ctx, conn); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("endpoint %s: PROXY header: %w", e.text, err)
		}
	}
	return e.secure(ctx, conn, encrypted, o.TLS, protocols)
}

// Key distinguishes Origins, as text. It contains no pointers, whose values can recur.
func (o Origin) Key() string {
	key := string(o.AppendHeader(nil))
	if o.TLS != nil {
		key += fmt.Sprintf(" %+v", *o.TLS)
	}
	if o.Authority != nil {
		key += fmt.Sprintf(" by %x", o.Authority.ID())
	}
	if o.Certificate != nil && len(o.Certificate.Certificate) > 0 {
		key += fmt.Sprintf(" as %x", sha256.Sum256(o.Certificate.Certificate[0]))
	}
	return key
}

// introduce writes the header.
func (o Origin) introduce(ctx context.Context, conn net.Conn) error {
	if t, ok := ctx.Deadline(); ok {
		_ = conn.SetWriteDeadline(t)
	}
	if _, err := conn.Write(o.AppendHeader(nil)); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{})
}

// forget is sweep for connections of single clients.
func (e *Endpoint) forget(before time.Time) {
	var old []*h1.Client
	e.mu.Lock()
	var rest []kept
	for _, k := range e.kept {
		if k.c.IdleSince.Before(before) || !k.c.Alive() {
			old = append(old, k.c)
		} else {
			rest = append(rest, k)
		}
	}
	if len(old) > 0 {
		e.kept = rest
	}
	e.mu.Unlock()
	for _, c := range old {
		_ = c.Close()
	}
}
