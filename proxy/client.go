package proxy

import (
	"bytes"
	"net/netip"

	"wayleave.dev/proxy/message"
)

// who returns the client's address: the peer's own, or, if the peer is trusted, the last untrusted address in
// X-Forwarded-For. Addresses before that one are not verified, so they are ignored.
func (x *exchange) who() netip.Addr {
	if !x.opt.known.IsValid() {
		x.opt.known = x.knownClient()
	}
	return x.opt.known
}

func (x *exchange) knownClient() netip.Addr {
	last := plainAddr(x.r.Client.Addr())
	if !x.believes(last) {
		return last
	}
	f := x.r.Fields
	for i := len(f) - 1; i >= 0; i-- {
		if !message.EqualFold(f[i].Name, forwardedFor) {
			continue
		}
		for list := f[i].Value; len(list) > 0; {
			one := list
			if j := bytes.LastIndexByte(list, ','); j >= 0 {
				one, list = list[j+1:], list[:j]
			} else {
				list = nil
			}
			a, ok := parseAddr(bytes.TrimSpace(one))
			if !ok {
				return last
			}
			if last = a; !x.believes(a) {
				return last
			}
		}
	}
	return last
}

// parseAddr parses an address, with or without a port, as load balancers write them.
func parseAddr(b []byte) (netip.Addr, bool) {
	if len(b) == 0 || len(b) > 64 {
		return netip.Addr{}, false
	}
	s := string(b)
	a, err := netip.ParseAddr(s)
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			if n := len(s); s[0] == '[' && s[n-1] == ']' {
				a, err = netip.ParseAddr(s[1 : n-1])
				return plainAddr(a), err == nil
			}
			return netip.Addr{}, false
		}
		a = ap.Addr()
	}
	return plainAddr(a), true
}

func plainAddr(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func (x *exchange) believes(a netip.Addr) bool {
	for _, p := range x.p.current().Trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// secure reports whether the client's connection is encrypted: according to a trusted peer's own line of
// X-Forwarded-Proto, which is the last, otherwise according to this connection.
func (x *exchange) secure() bool {
	if proto := x.r.Fields.Last(forwardedProto); len(proto) > 0 && x.believes(plainAddr(x.r.Client.Addr())) {
		first, _, _ := bytes.Cut(proto, []byte(","))
		return message.EqualFold(bytes.TrimSpace(first), "https")
	}
	return x.r.TLS
}
