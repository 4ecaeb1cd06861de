package model

import (
	"errors"
	"net/netip"
	"strings"
)

// Nameserver is a DNS server that is asked for names outside of the cluster.
type Nameserver struct {
	// Addr is its address and port.
	Addr netip.AddrPort
	// TLS says that it is asked by DNS over TLS (RFC 7858) and never otherwise.
	TLS bool
	// ServerName is whom the certificate must be for; empty is the address.
	ServerName string
}

// ParseNameserver reads IP, IP:port, tls://IP@NAME or tls://IP:port@NAME. The port
// is 53, with TLS 853, where none is given.
func ParseNameserver(s string) (Nameserver, error) {
	n := Nameserver{}
	rest, ok := strings.CutPrefix(s, "tls://")
	port := uint16(53)
	if ok {
		n.TLS, port = true, 853
		rest, n.ServerName, ok = strings.Cut(rest, "@")
		if ok && n.ServerName == "" {
			return Nameserver{}, errors.New("a name must follow the @")
		}
	}
	if a, err := netip.ParseAddr(strings.Trim(rest, "[]")); err == nil {
		n.Addr = netip.AddrPortFrom(a.Unmap(), port)
		return n, nil
	}
	var err error
	n.Addr, err = netip.ParseAddrPort(rest)
	if err == nil && n.Addr.Port() == 0 {
		err = errors.New("port 0 is none")
	}
	return n, err
}

// String is what ParseNameserver reads.
func (n Nameserver) String() string {
	s := n.Addr.String()
	if n.TLS {
		s = "tls://" + s
	}
	if n.ServerName != "" {
		s += "@" + n.ServerName
	}
	return s
}

// MarshalText implements encoding.TextMarshaler.
func (n Nameserver) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *Nameserver) UnmarshalText(b []byte) (err error) {
	*n, err = ParseNameserver(string(b))
	return err
}
