package dns

import (
	"net/netip"
	"strings"
	"sync"

	"github.com/miekg/dns"

	"wayleave.dev/model"
)

// Times to live, in seconds: those that kubeadm's CoreDNS gives.
const (
	recordTTL   = 30
	negativeTTL = 30
)

// node is what one name has. A name exists while it has records or a name below
// it exists (an empty non-terminal).
type node struct {
	addrs []netip.Addr
	cname string
	srv   []srv
	txt   []string
	// below counts the names directly below that exist.
	below int
}

type srv struct {
	port   uint16
	target string
}

func (n *node) empty() bool {
	return len(n.addrs) == 0 && n.cname == "" && len(n.srv) == 0 && len(n.txt) == 0 && n.below == 0
}

// Zone is the names of the cluster. Names in it are relative to the cluster
// domain and in lower case. Safe for concurrent use.
type Zone struct {
	mu      sync.RWMutex
	names   map[string]*node
	reverse map[netip.Addr][]string
	entries map[model.Name]Entry
}

// NewZone makes a zone that holds the names which every cluster has.
func NewZone() *Zone {
	z := &Zone{names: map[string]*node{}, reverse: map[netip.Addr][]string{}, entries: map[model.Name]Entry{}}
	z.at("dns-version").txt = []string{"1.1.0"}
	z.at("svc")
	z.at("svc").below++ // exists with no service in it, too
	return z
}

// Set replaces the entry of one key; nil removes it.
func (z *Zone) Set(key model.Name, e *Entry) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if old, ok := z.entries[key]; ok {
		z.each(key, old, z.drop)
		delete(z.entries, key)
	}
	if e != nil {
		z.each(key, *e, z.add)
		z.entries[key] = *e
	}
}

// Reset replaces everything.
func (z *Zone) Reset(entries map[model.Name]Entry) {
	fresh := NewZone()
	for k, e := range entries {
		fresh.Set(k, &e)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.names, z.reverse, z.entries = fresh.names, fresh.reverse, fresh.entries
}

// Entries is a copy of what the zone is made of.
func (z *Zone) Entries() map[model.Name]Entry {
	z.mu.RLock()
	defer z.mu.RUnlock()
	out := make(map[model.Name]Entry, len(z.entries))
	for k, e := range z.entries {
		out[k] = e
	}
	return out
}

// record is one thing that a name has.
type record struct {
	addr  netip.Addr
	cname string
	srv   srv
	// ptr says that the address has this name, in the reverse zone.
	ptr bool
	// exists is a name that is there for itself.
	exists bool
}

// each calls fn for every record of an entry.
func (z *Zone) each(key model.Name, e Entry, fn func(name string, r record)) {
	if key.Name == "" {
		fn(key.Namespace+".svc", record{exists: true})
		return
	}
	base := strings.ToLower(key.Name + "." + key.Namespace + ".svc")
	if e.CNAME != "" {
		fn(base, record{cname: e.CNAME})
		return
	}
	fn(base, record{exists: true})
	for _, a := range e.VIPs {
		fn(base, record{addr: a, ptr: true})
	}
	for _, h := range e.Hosts {
		fn(base, record{addr: h.Addr})
		fn(h.Name+"."+base, record{addr: h.Addr, ptr: true})
	}
	for _, p := range e.Ports {
		name := "_" + strings.ToLower(p.Name) + "._" + p.Protocol + "." + base
		if len(e.VIPs) > 0 {
			fn(name, record{srv: srv{p.Port, base}})
		}
		for _, h := range e.Hosts {
			fn(name, record{srv: srv{p.Port, h.Name + "." + base}})
		}
	}
}

// at returns the node of a name, made with its parents when it is new.
func (z *Zone) at(name string) *node {
	if n, ok := z.names[name]; ok {
		return n
	}
	n := &node{}
	z.names[name] = n
	if _, parent, ok := strings.Cut(name, "."); ok {
		z.at(parent).below++
	}
	return n
}

func (z *Zone) add(name string, r record) {
	n := z.at(name)
	switch {
	case r.exists:
		n.below++
	case r.cname != "":
		n.cname = r.cname
	case r.srv.target != "":
		n.srv = append(n.srv, r.srv)
	default:
		n.addrs = append(n.addrs, r.addr)
	}
	if r.ptr {
		z.reverse[r.addr] = append(z.reverse[r.addr], name)
	}
}

func (z *Zone) drop(name string, r record) {
	n, ok := z.names[name]
	if !ok {
		return
	}
	switch {
	case r.exists:
		n.below--
	case r.cname != "":
		n.cname = ""
	case r.srv.target != "":
		n.srv = without(n.srv, r.srv)
	default:
		n.addrs = without(n.addrs, r.addr)
	}
	if r.ptr {
		if z.reverse[r.addr] = without(z.reverse[r.addr], name); len(z.reverse[r.addr]) == 0 {
			delete(z.reverse, r.addr)
		}
	}
	z.prune(name)
}

// prune forgets names that hold nothing any more.
func (z *Zone) prune(name string) {
	for n := z.names[name]; n != nil && n.empty(); n = z.names[name] {
		delete(z.names, name)
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return
		}
		z.names[parent].below--
		name = parent
	}
}

// without returns the list less the first v. It copies: answers may be reading
// the old list.
func without[T comparable](list []T, v T) []T {
	for i, have := range list {
		if have == v {
			return append(append([]T(nil), list[:i]...), list[i+1:]...)
		}
	}
	return list
}

// look returns a copy of what a relative name has.
func (z *Zone) look(name string) (node, bool) {
	z.mu.RLock()
	defer z.mu.RUnlock()
	n, ok := z.names[name]
	if !ok {
		return node{}, false
	}
	return *n, true
}

// pointer returns the relative names of an address.
func (z *Zone) pointer(a netip.Addr) []string {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return z.reverse[a]
}

// reverseAddr reads the address of a name below in-addr.arpa or ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := len(rest) - 1; i >= 0; i -= 2 {
		b.WriteByte(rest[i])
		if n := (len(rest) - i); n%8 == 7 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// header is the head of a record of ours. The name is the question's own, so that
// the letter case comes back as it was asked.
func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: recordTTL}
}
