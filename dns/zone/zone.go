package zone

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/model"
)

// node is the content of one name. A name exists while it has records or a name below it exists (an empty
// non-terminal). Its lists are never changed, only replaced.
type node struct {
	Content
	// below counts the existing names directly below.
	below int
}

// Content is what a name has from its entry: every name belongs to at most one entry.
type Content struct {
	// exists is true for a name that exists without records.
	exists bool
	Addrs  []netip.Addr
	CNAME  string
	SRV    []SRV
	TXT    []string
	// v4 and v6 are the records of addrs in the hot path's form.
	v4, v6 []byte
}

// SRV is the target of an SRV record.
type SRV struct {
	Port uint16
	// Target is relative to the domain, in wire form.
	Target string
	// again means that an earlier record has the same target.
	again bool
}

func (n *node) empty() bool {
	return !n.exists && n.below == 0
}

// Zone is the names of the cluster. Names in it are relative to the cluster
// domain, in lower case and in wire form without the root. Safe for concurrent use.
type Zone struct {
	// writing is held during a change of the zone, and mu while readers must wait.
	writing sync.Mutex
	mu      sync.RWMutex
	names   map[string]*node
	reverse map[netip.Addr][]string
	entries map[model.Name]schema.Records
	// pods counts the pods of a namespace that have an address: those with the node's network share one.
	pods map[podAddr]int
}

// podAddr is the content of a pod's name.
type podAddr struct {
	namespace string
	addr      netip.Addr
}

// New returns a zone with the names that every cluster has.
func New() *Zone {
	z := &Zone{names: map[string]*node{}, reverse: map[netip.Addr][]string{}, entries: map[model.Name]schema.Records{},
		pods: map[podAddr]int{}}
	z.put("\x0bdns-version", Content{exists: true, TXT: []string{"1.1.0"}})
	z.put("\x03svc", Content{exists: true}) // exists also without Services
	return z
}

// RLock keeps the zone unchanged until RUnlock, for Answer.
func (z *Zone) RLock() { z.mu.RLock() }

// RUnlock ends RLock.
func (z *Zone) RUnlock() { z.mu.RUnlock() }

// Set replaces the entry of one key; nil removes it.
func (z *Zone) Set(key model.Name, e *schema.Records) {
	z.writing.Lock()
	defer z.writing.Unlock()
	var before, after records
	old, had := z.entries[key]
	everything := !had || e == nil
	var changed map[string]bool
	if !everything {
		changed = changedHosts(old.Hosts, e.Hosts)
		maps.Copy(changed, changedHosts(old.Named, e.Named))
	}
	touched := func(host string) bool { return everything || changed[host] }
	if had {
		before = build(key, old, touched)
	}
	if e != nil {
		after = build(key, *e, touched)
		after.finish()
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, p := range before.pods {
		if z.pods[p]--; z.pods[p] == 0 {
			delete(z.pods, p)
		}
	}
	for _, p := range after.pods {
		z.pods[p]++
	}
	for p := range before.pointers {
		if _, stays := after.pointers[p]; !stays {
			z.unpoint(p)
		}
	}
	for p := range after.pointers {
		if _, had := before.pointers[p]; !had {
			z.reverse[p.addr] = append(z.reverse[p.addr][:len(z.reverse[p.addr]):len(z.reverse[p.addr])], p.name)
		}
	}
	for name, c := range after.names {
		z.put(name, *c)
	}
	for name := range before.names {
		if _, stays := after.names[name]; !stays {
			z.take(name)
		}
	}
	delete(z.entries, key)
	if e != nil {
		z.entries[key] = *e
	}
}

// Reset replaces everything.
func (z *Zone) Reset(entries map[model.Name]schema.Records) {
	fresh := New()
	for k, e := range entries {
		fresh.Set(k, &e)
	}
	z.writing.Lock()
	defer z.writing.Unlock()
	z.mu.Lock()
	defer z.mu.Unlock()
	z.names, z.reverse, z.entries, z.pods = fresh.names, fresh.reverse, fresh.entries, fresh.pods
}

// Entries returns a copy of the zone's entries.
func (z *Zone) Entries() map[model.Name]schema.Records {
	z.mu.RLock()
	defer z.mu.RUnlock()
	out := make(map[model.Name]schema.Records, len(z.entries))
	for k, e := range z.entries {
		out[k] = e
	}
	return out
}

// changedHosts are the names whose addresses differ between the lists. If the lists are sorted, as in plans, it returns
// no others.
func changedHosts(a, b []schema.Host) map[string]bool {
	out := map[string]bool{}
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(a) > 0 && len(b) > 0 && a[0] == b[0]:
			a, b = a[1:], b[1:]
		case len(b) == 0 || (len(a) > 0 && schema.CompareHosts(a[0], b[0]) < 0):
			out[a[0].Name] = true
			a = a[1:]
		default:
			out[b[0].Name] = true
			b = b[1:]
		}
	}
	return out
}

// records are those of one entry.
type records struct {
	names    map[string]*Content
	pointers map[pointer]struct{}
	pods     []podAddr
}

// pointer is a name of an address in the reverse zone.
type pointer struct {
	addr netip.Addr
	name string
}

// at returns the content of a name. For a name that cannot be on the wire it returns a content that is not used.
func (r *records) at(wire string) *Content {
	if wire == "" {
		return &Content{}
	}
	c, ok := r.names[wire]
	if !ok {
		c = &Content{exists: true}
		r.names[wire] = c
	}
	return c
}

func (r *records) point(a netip.Addr, name string) {
	if name != "" {
		r.pointers[pointer{a, name}] = struct{}{}
	}
}

// build makes the records of an entry, except for hosts that are not in touched.
func build(key model.Name, e schema.Records, touched func(host string) bool) records {
	r := records{names: map[string]*Content{}, pointers: map[pointer]struct{}{}}
	if key.Name == "" {
		r.at(under("", key.Namespace+".svc"))
		return r
	}
	if len(e.Pod) > 0 {
		for _, a := range e.Pod {
			r.pods = append(r.pods, podAddr{key.Namespace, a})
		}
		return r
	}
	if e.Unready {
		return r
	}
	base := under("", strings.ToLower(key.Name+"."+key.Namespace+".svc"))
	c := r.at(base)
	if c.CNAME = e.CNAME; c.CNAME != "" || base == "" {
		return r
	}
	var targets []string
	if len(e.VIPs) > 0 {
		targets = append(targets, base)
	}
	c.Addrs = make([]netip.Addr, 0, len(e.VIPs)+len(e.Hosts))
	for _, a := range e.VIPs {
		c.Addrs = append(c.Addrs, a)
		r.point(a, base)
	}
	targets = append(targets, r.hosts(c, base, e.Hosts, touched)...)
	r.hosts(&Content{}, base, e.Named, touched) // they are not addresses of the Service
	for _, p := range e.Ports {
		if having := having(p, base, targets); len(having) > 0 {
			r.at(under(base, "_"+strings.ToLower(p.Name)+"._"+p.Protocol)).serve(p.Port, having)
		}
	}
	return r
}

// having returns the targets that have the port.
func having(p schema.Port, base string, targets []string) []string {
	if len(p.Hosts) == 0 {
		return targets
	}
	wires := make(map[string]bool, len(p.Hosts))
	for _, h := range p.Hosts {
		wires[under(base, h)] = true
	}
	var out []string
	for _, t := range targets {
		if wires[t] {
			out = append(out, t)
		}
	}
	return out
}

// hosts adds the endpoints of a headless Service, and returns their names.
func (r *records) hosts(c *Content, base string, list []schema.Host, touched func(host string) bool) []string {
	targets, seen := make([]string, 0, len(list)), make(map[string]bool, len(list))
	for i, h := range list {
		if i == 0 || h.Addr != list[i-1].Addr { // one address may have two names
			c.Addrs = append(c.Addrs, h.Addr)
		}
		if seen[h.Name] && !touched(h.Name) {
			continue
		}
		wire := under(base, h.Name)
		if wire == "" {
			continue
		}
		if !seen[h.Name] {
			seen[h.Name] = true
			targets = append(targets, wire)
		}
		if touched(h.Name) {
			host := r.at(wire)
			host.Addrs = append(host.Addrs, h.Addr)
			r.point(h.Addr, wire)
		}
	}
	return targets
}

// under returns the wire form of a name below base, which is in wire form; empty if it is invalid.
func under(base, text string) string {
	if plain(text) && len(base)+len(text) < 254 {
		return string(rune(len(text))) + text + base
	}
	wire, ok := wire.FromText(text)
	if !ok || len(wire)+len(base) > 254 {
		return ""
	}
	return wire + base
}

// plain reports whether a text is one label of letters, digits, hyphens and underscores.
func plain(text string) bool {
	for i := range len(text) {
		c := text[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return text != "" && len(text) <= 63
}

// serve adds SRV records of a port.
func (c *Content) serve(port uint16, targets []string) {
	for _, s := range c.SRV {
		if s.Port == port {
			return // exists already
		}
	}
	before := make(map[string]bool, len(c.SRV))
	for _, s := range c.SRV {
		before[s.Target] = true
	}
	c.SRV = slices.Grow(c.SRV, len(targets))
	for _, t := range targets {
		c.SRV = append(c.SRV, SRV{Port: port, Target: t, again: before[t]})
	}
}

// finish makes the prebuilt bytes of the hot path.
func (r *records) finish() {
	for _, c := range r.names {
		c.v4, c.v6 = addrRecords(c.Addrs, dns.TypeA), addrRecords(c.Addrs, dns.TypeAAAA)
	}
}

// node returns the node of a name, and creates it with its parents if necessary.
func (z *Zone) node(name string) *node {
	if n, ok := z.names[name]; ok {
		return n
	}
	n := &node{}
	z.names[name] = n
	if parent := parentOf(name); parent != "" {
		z.node(parent).below++
	}
	return n
}

// parentOf returns the name without its first label.
func parentOf(name string) string { return name[1+int(name[0]):] }

func (z *Zone) put(name string, c Content) { z.node(name).Content = c }

// take empties a name, and removes names without content.
func (z *Zone) take(name string) {
	n, ok := z.names[name]
	if !ok {
		return
	}
	n.Content = Content{}
	for n != nil && n.empty() {
		delete(z.names, name)
		if name = parentOf(name); name == "" {
			return
		}
		n = z.names[name]
		n.below--
	}
}

func (z *Zone) unpoint(p pointer) {
	if z.reverse[p.addr] = without(z.reverse[p.addr], p.name); len(z.reverse[p.addr]) == 0 {
		delete(z.reverse, p.addr)
	}
}

// without returns a copy of the list without the first v. Answers may be reading the old list.
func without[T comparable](list []T, v T) []T {
	for i, have := range list {
		if have == v {
			return append(append([]T(nil), list[:i]...), list[i+1:]...)
		}
	}
	return list
}

// Look returns a copy of the content of a relative name, given as text.
func (z *Zone) Look(name string) (Content, bool) {
	wire, ok := wire.FromText(name)
	if !ok {
		return Content{}, false
	}
	return z.LookWire(wire)
}

// LookWire is Look for a name in wire form.
func (z *Zone) LookWire(name string) (Content, bool) {
	z.mu.RLock()
	defer z.mu.RUnlock()
	n, ok := z.names[name]
	if !ok {
		return Content{}, false
	}
	return n.Content, true
}

// HasService reports whether the cluster has a Service, including one whose name has no records yet.
func (z *Zone) HasService(key model.Name) bool {
	z.mu.RLock()
	defer z.mu.RUnlock()
	_, ok := z.entries[key]
	return ok
}

// HasPod reports whether a pod of the namespace has the address.
func (z *Zone) HasPod(namespace string, a netip.Addr) bool {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return z.pods[podAddr{namespace, a}] > 0
}

// Pointer returns the relative names of an address, in wire form.
func (z *Zone) Pointer(a netip.Addr) []string {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return z.reverse[a]
}
