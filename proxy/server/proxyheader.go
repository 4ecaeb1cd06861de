package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
)

// The PROXY protocol (haproxy's doc/proxy-protocol.txt): a load balancer in front first sends the address of its
// client.

// proxySignature begins version 2.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// Sizes of headers: a line of version 1 has an end; version 2 has addresses, and may have more after them.
const (
	maxProxyLine = 107
	maxProxyV2   = 2 << 10
)

var errProxyHeader = errors.New("no PROXY header where one must be")

// proxied is a connection that a load balancer opened on behalf of another address.
type proxied struct {
	net.Conn
	remote, local net.Addr
}

// RemoteAddr returns the client's address.
func (p *proxied) RemoteAddr() net.Addr { return p.remote }

// LocalAddr returns the address that the client connected to.
func (p *proxied) LocalAddr() net.Addr { return p.local }

// CloseWrite ends one direction.
func (p *proxied) CloseWrite() error {
	if t, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return t.CloseWrite()
	}
	return p.Close()
}

// NetConn is the connection itself.
func (p *proxied) NetConn() net.Conn { return p.Conn }

// readProxyHeader reads the header and not a byte more. A load balancer that connects for itself, such as for a health
// check, keeps its own address.
func readProxyHeader(c net.Conn) (net.Conn, error) {
	var head [maxProxyLine]byte
	if _, err := io.ReadFull(c, head[:len(proxySignature)]); err != nil {
		return nil, fmt.Errorf("PROXY header: %w", err)
	}
	var remote, local netip.AddrPort
	var err error
	switch {
	case string(head[:len(proxySignature)]) == proxySignature:
		remote, local, err = readProxyV2(c)
	case bytes.HasPrefix(head[:], []byte("PROXY ")):
		remote, local, err = readProxyV1(c, head[:], len(proxySignature))
	default:
		return nil, errProxyHeader
	}
	if err != nil {
		return nil, fmt.Errorf("PROXY header: %w", err)
	}
	if !remote.IsValid() {
		return c, nil
	}
	return &proxied{c, net.TCPAddrFromAddrPort(remote), net.TCPAddrFromAddrPort(local)}, nil
}

// readProxyV1 reads the rest of a line, a byte at a time, because the bytes after it belong to the client.
func readProxyV1(c net.Conn, line []byte, n int) (remote, local netip.AddrPort, err error) {
	for ; !bytes.HasSuffix(line[:n], []byte("\r\n")); n++ {
		if n == len(line) {
			return remote, local, errors.New("a line that does not end")
		}
		if _, err := io.ReadFull(c, line[n:n+1]); err != nil {
			return remote, local, err
		}
	}
	f := bytes.Split(line[:n-2], []byte(" "))
	if len(f) >= 2 && string(f[1]) == "UNKNOWN" {
		return remote, local, nil
	}
	if len(f) != 6 || string(f[1]) != "TCP4" && string(f[1]) != "TCP6" {
		return remote, local, fmt.Errorf("%q", line[:n-2])
	}
	addr := func(a, p []byte) (netip.AddrPort, error) {
		ip, err := netip.ParseAddr(string(a))
		if err != nil {
			return netip.AddrPort{}, err
		}
		if ip.Is4() != (string(f[1]) == "TCP4") || ip.Zone() != "" {
			return netip.AddrPort{}, fmt.Errorf("%s is not of %s", ip, f[1])
		}
		port, err := strconv.ParseUint(string(p), 10, 16)
		return netip.AddrPortFrom(ip, uint16(port)), err
	}
	if remote, err = addr(f[2], f[4]); err == nil {
		local, err = addr(f[3], f[5])
	}
	return remote, local, err
}

// readProxyV2 reads what follows the signature.
func readProxyV2(c net.Conn) (remote, local netip.AddrPort, err error) {
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return remote, local, err
	}
	size := int(binary.BigEndian.Uint16(head[2:]))
	if head[0]>>4 != 2 || size > maxProxyV2 {
		return remote, local, fmt.Errorf("version %d with %d bytes", head[0]>>4, size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c, body); err != nil {
		return remote, local, err
	}
	switch head[0] & 15 {
	case 0: // LOCAL: the load balancer itself
		return remote, local, nil
	case 1:
	default:
		return remote, local, fmt.Errorf("command %d", head[0]&15)
	}
	pair := func(n int) error {
		if size < 2*n+4 {
			return errors.New("truncated addresses")
		}
		src, _ := netip.AddrFromSlice(body[:n])
		dst, _ := netip.AddrFromSlice(body[n : 2*n])
		remote = netip.AddrPortFrom(src.Unmap(), binary.BigEndian.Uint16(body[2*n:]))
		local = netip.AddrPortFrom(dst.Unmap(), binary.BigEndian.Uint16(body[2*n+2:]))
		return nil
	}
	switch head[1] {
	case 0x11: // TCP over IPv4
		err = pair(4)
	case 0x21: // TCP over IPv6
		err = pair(16)
	case 0x00: // unspecified
	default:
		err = fmt.Errorf("family and transport 0x%02x", head[1])
	}
	return remote, local, err
}
