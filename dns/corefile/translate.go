package corefile

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"wayleave.dev/model"
)

// Note is a message about a line.
type Note struct {
	Line int
	Text string
	// Lost means that Wayleave will not do what the line does.
	Lost bool
}

func (n Note) String() string { return n.In("") }

// In returns the note with its place; file is empty for a Corefile without a name.
func (n Note) In(file string) string {
	what, at := "note", fmt.Sprintf("line %d", n.Line)
	if n.Lost {
		what = "not carried over"
	}
	if file != "" {
		at = fmt.Sprintf("%s:%d", file, n.Line)
	}
	return fmt.Sprintf("%s: %s: %s", at, what, n.Text)
}

// translator collects settings.
type translator struct {
	has func(key string) bool
	// The settings: all, and groups of them.
	top, dns, stubs, hosts map[string]any
	plugins                map[string]plugin
	from                   map[string]int // line of a key, to detect duplicates
	notes                  []Note
	server, own            []string // zones of the server block
	seen                   []string // zones of all server blocks
}

// Translate converts a Corefile to a settings file, with notes in the order of lines. has reports whether Wayleave has
// a setting, by its key. The error is for files that are not Corefiles.
func Translate(text string, has func(key string) bool) ([]byte, []Note, error) {
	return TranslateWith(text, nil, has)
}

// TranslateWith is Translate with the content of files that the Corefile may import, by their names without folders.
func TranslateWith(text string, files map[string]string, has func(key string) bool) ([]byte, []Note, error) {
	list, err := parse(text)
	if err == nil {
		list, err = snippets(list, files)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("not a Corefile: %w", err)
	}
	if len(list) == 0 {
		return nil, nil, fmt.Errorf("not a Corefile: it has no server block")
	}
	t := &translator{has: has, top: map[string]any{}, dns: map[string]any{}, stubs: map[string]any{},
		hosts: map[string]any{}, plugins: map[string]plugin{}, from: map[string]int{}}
	for _, f := range plugins() {
		t.plugins[f.name] = f
	}
	t.variables(list)
	for _, s := range list {
		if s.name == "import" && !s.braced {
			t.directive(s)
			continue
		}
		t.block(s)
	}
	for key, m := range map[string]map[string]any{"stubDomains": t.stubs, "hosts": t.hosts} {
		if len(m) > 0 {
			t.dns[key] = m
		}
	}
	if len(t.dns) > 0 {
		t.top["dns"] = t.dns
	}
	slices.SortStableFunc(t.notes, func(a, b Note) int { return a.Line - b.Line })
	out, err := yaml.Marshal(t.top)
	return out, t.notes, err
}

func (t *translator) note(line int, format string, a ...any) {
	t.notes = append(t.notes, Note{Line: line, Text: fmt.Sprintf(format, a...)})
}

func (t *translator) lose(line int, format string, a ...any) {
	t.notes = append(t.notes, Note{Line: line, Text: fmt.Sprintf(format, a...), Lost: true})
}

// variables reports lines that contain variables of CoreDNS's environment.
func (t *translator) variables(list []directive) {
	for _, d := range list {
		for _, word := range append([]string{d.name}, d.args...) {
			if strings.Contains(word, "{$") || strings.Contains(word, "{%") {
				t.lose(d.line, "%s: variables of CoreDNS's environment are not known here", word)
			}
		}
		t.variables(d.block)
	}
}

// set records a setting; the first of two applies.
func (t *translator) set(line int, to map[string]any, key string, v any) {
	at := place(to, key)
	if first, ok := t.from[at]; ok && fmt.Sprint(to[key]) != fmt.Sprint(v) {
		t.lose(line, "%s: %v; line %d set %v, and there is one setting for all zones", key, v, first, to[key])
		return
	}
	if _, ok := t.from[at]; !ok {
		t.from[at] = line
		to[key] = v
	}
}

// place identifies a key of one of the maps.
func place(m map[string]any, key string) string { return fmt.Sprintf("%p %s", m, key) }

// zone returns a name in lower case without a final dot; "" is the root.
func zone(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }

// block translates a server block.
func (t *translator) block(s directive) {
	t.server, t.own = nil, nil
	for _, z := range append([]string{s.name}, s.args...) {
		for z := range strings.SplitSeq(z, ",") {
			if z != "" {
				t.zone(s.line, z)
			}
		}
	}
	t.seen = append(t.seen, t.own...)
	if len(t.server) == 0 {
		t.lose(s.line, "server block %s with all its directives", s.name)
		return
	}
	for _, d := range s.block {
		t.directive(d)
	}
}

func (t *translator) zone(line int, z string) {
	if scheme, rest, ok := strings.Cut(z, "://"); ok {
		if scheme != "dns" {
			t.lose(line, "%s: queries are served by UDP and TCP", z)
			return
		}
		z = rest
	}
	if i := strings.LastIndexByte(z, ':'); i >= 0 && !strings.Contains(z[i:], "/") { // not a network of IPv6
		if port := z[i+1:]; port != "53" {
			t.note(line, "port %s: queries are answered at port 53 of the cluster DNS", port)
		}
		z = z[:i]
	}
	names, ok := names(z)
	if !ok {
		t.lose(line, "%s: it is neither the name of a zone nor a network", z)
		return
	}
	for _, name := range names {
		switch {
		case slices.Contains(t.seen, name):
			t.lose(line, "a second server block for %q", z)
		case !slices.Contains(t.own, name): // the same zone at another port of the block is one zone
			t.own, t.server = append(t.own, name), append(t.server, name)
		}
	}
}

// names returns the zones that CoreDNS makes of a name or a network.
func names(z string) ([]string, bool) {
	name := zone(z)
	if strings.Contains(name, "/") {
		n, err := netip.ParsePrefix(name)
		if err != nil {
			return nil, false
		}
		return reverse(n), true
	}
	return []string{name}, name == "" || isName(name)
}

// reverse returns the zones of addresses of a network: one, or several if its length is not at a dot of the names.
func reverse(n netip.Prefix) (out []string) {
	n = n.Masked()
	step, suffix := 8, "in-addr.arpa"
	if n.Addr().Is6() {
		step, suffix = 4, "ip6.arpa"
	}
	bits := (n.Bits() + step - 1) / step * step
	raw := n.Addr().AsSlice()
	for i := range 1 << (bits - n.Bits()) {
		last, labels := slices.Clone(raw), suffix
		if bits > 0 { // the last label counts
			last[(bits-1)/8] += byte(i << ((8 - bits%8) % 8))
		}
		for b := step; b <= bits; b += step {
			part := strconv.Itoa(int(last[(b-1)/8]))
			if step == 4 {
				part = strconv.FormatInt(int64(last[(b-1)/8]>>((8-b%8)%8)&15), 16)
			}
			labels = part + "." + labels
		}
		out = append(out, labels)
	}
	return out
}

// isName reports whether text is a DNS name in lower case.
func isName(s string) bool {
	for l := range strings.SplitSeq(s, ".") {
		if l == "" || len(l) > 63 || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return len(s) <= 253
}

func (t *translator) directive(d directive) {
	switch d.name {
	case "kubernetes":
		t.kubernetes(d)
	case "forward", "proxy": // proxy was CoreDNS's before 1.5
		t.forward(d)
	case "cache":
		t.cache(d)
	case "hosts":
		t.hostsOf(d)
	case "autopath":
		if !t.has("dns.autopath") {
			t.lose(d.line, "autopath: it is not built yet")
		} else if len(d.args) != 1 || d.args[0] != "@kubernetes" {
			t.lose(d.line, "autopath %s: the search lists are the pods' own", strings.Join(d.args, " "))
		} else {
			t.set(d.line, t.dns, "autopath", true)
		}
	case "import":
		t.lose(d.line, "import %s: other files are not read; translate them one by one", strings.Join(d.args, " "))
	default:
		f, ok := t.plugins[d.name]
		switch {
		case !ok:
			t.lose(d.line, "%s: CoreDNS has no such directive of its own", d.name)
		case f.state == lost && f.note == "":
			t.lose(d.line, "%s", d.name)
			t.loseOptions(d)
		case f.state == lost:
			t.lose(d.line, "%s: %s", d.name, f.note)
			t.loseOptions(d)
		default:
			t.builtIn(d, f)
		}
	}
}

// loseOptions reports the lines of a directive that is not carried over.
func (t *translator) loseOptions(d directive) {
	for _, o := range d.block {
		t.lose(o.line, "%s: %s", d.name, strings.TrimSpace(o.name+" "+strings.Join(o.args, " ")))
		t.loseOptions(o)
	}
}

// builtIn handles a directive that needs no setting. Options beyond what is built in are reported.
func (t *translator) builtIn(d directive, f plugin) {
	if len(d.args) > 0 && !f.anyArgs && strings.Join(d.args, " ") != f.args {
		t.lose(d.line, "%s %s: built in: %s", d.name, strings.Join(d.args, " "), f.note)
	} else {
		t.note(d.line, "%s: built in: %s", d.name, f.note)
	}
	for _, o := range d.block {
		if slices.Contains(f.options, o.name) {
			t.note(o.line, "%s: built in", o.name)
			continue
		}
		t.lose(o.line, "%s: %s", d.name, strings.TrimSpace(o.name+" "+strings.Join(o.args, " ")))
	}
}

func (t *translator) kubernetes(d directive) {
	zones := d.args
	if len(zones) == 0 {
		zones = t.server
	}
	var domains []string
	for _, z := range zones {
		switch name := zone(z); {
		case strings.Contains(name, "/"), strings.HasSuffix(name, "in-addr.arpa"), strings.HasSuffix(name, "ip6.arpa"):
			// Reverse names of Services are answered whatever their zone.
		case name == "":
			t.lose(d.line, "kubernetes for the root zone: name the cluster's domain")
		case !isName(name):
			t.lose(d.line, "kubernetes %s: it is not the name of a zone", z)
		default:
			domains = append(domains, name)
		}
	}
	if len(domains) > 0 {
		t.set(d.line, t.top, "clusterDomain", domains[0])
	}
	if len(domains) > 1 {
		t.built(d.line, "extraDomains", domains[1:])
	}
	pods := false
	for _, o := range d.block {
		switch o.name {
		case "pods":
			pods = true
			t.built(o.line, "pods", strings.Join(o.args, " "))
		case "ttl":
			if strings.Join(o.args, " ") != "30" {
				t.lose(o.line, "ttl %s: names of the cluster have 30 s", strings.Join(o.args, " "))
			}
		case "fallthrough":
			if slices.ContainsFunc(o.args, func(z string) bool { return !strings.HasSuffix(zone(z), ".arpa") }) ||
				len(o.args) == 0 {
				t.lose(o.line, "fallthrough %s: names of the cluster's domain are answered here only; addresses "+
					"outside of the cluster are forwarded anyway", strings.Join(o.args, " "))
			}
		case "upstream":
			t.note(o.line, "upstream: built in: aliases to names outside of the cluster are looked up")
		case "startup_timeout", "startupdelay":
			t.note(o.line, "%s: not needed: answers start from the last snapshot", o.name)
		default:
			t.lose(o.line, "kubernetes: %s", strings.TrimSpace(o.name+" "+strings.Join(o.args, " ")))
		}
	}
	if !pods { // CoreDNS's default
		t.built(d.line, "pods", "disabled")
	}
}

// built sets a setting of dns if Wayleave has it.
func (t *translator) built(line int, key string, v any) {
	if !t.has("dns." + key) {
		t.lose(line, "%s %v: it is not built yet", key, v)
		return
	}
	t.set(line, t.dns, key, v)
}

func (t *translator) forward(d directive) {
	if len(d.args) < 2 {
		t.lose(d.line, "%s without a zone and a server", d.name)
		return
	}
	name := t.options(d)
	var servers []string
	file := false
	for _, to := range d.args[1:] {
		if strings.HasPrefix(to, "/") {
			file = true
			if to != "/etc/resolv.conf" {
				t.lose(d.line, "forward to the servers of %s: name them", to)
			}
			continue
		}
		n, err := model.ParseNameserver(strings.TrimPrefix(to, "dns://"))
		if err != nil || n.ServerName != "" {
			t.lose(d.line, "forward to %s: servers must be IP addresses, by UDP and TCP or tls://", to)
			continue
		}
		if n.TLS {
			n.ServerName = name
		}
		servers = append(servers, n.String())
	}
	for _, z := range t.reach(d) {
		switch {
		case z == "" && len(servers) == 0:
			// The node's own resolv.conf is the default.
		case file && (z != "" || len(servers) > 0):
			t.lose(d.line, "forward %s to /etc/resolv.conf beside other servers, or for a domain: name the servers",
				d.args[0])
		case len(servers) == 0:
		case z == "":
			t.set(d.line, t.dns, "upstreams", servers)
		default:
			t.set(d.line, t.stubs, z, servers)
		}
	}
}

// reach returns the zones of a forward: FROM within those of the server block.
func (t *translator) reach(d directive) []string {
	list, ok := names(d.args[0])
	if !ok {
		t.lose(d.line, "forward %s: it is neither the name of a zone nor a network", d.args[0])
		return nil
	}
	var out []string
	for _, from := range list {
		for _, z := range t.server {
			switch {
			case from == "" || z == from || strings.HasSuffix(z, "."+from):
				out = append(out, z)
			case z == "" || strings.HasSuffix(from, "."+z):
				out = append(out, from)
			}
		}
	}
	if len(out) == 0 {
		t.lose(d.line, "forward %s: it is not within the server block's zones", d.args[0])
	}
	return out
}

// options parses those of a forward; name is tls_servername.
func (t *translator) options(d directive) (name string) {
	for _, o := range d.block {
		args := strings.Join(o.args, " ")
		switch o.name {
		case "tls_servername":
			name = args
		case "tls":
			if len(o.args) > 0 {
				t.lose(o.line, "tls %s: there are no client certificates; an authority goes to dns.tlsCA", args)
			}
		case "policy":
			if args != "sequential" {
				t.note(o.line, "policy %s: servers are tried in their order, those that answer first", args)
			}
		case "max_fails", "health_check", "expire", "max_concurrent", "prefer_udp", "failfast_all_unhealthy_upstreams",
			"max_idle_conns", "max_age", "max_connect_attempts", "fail_timeout", "spray":
			t.note(o.line, "%s: health checks and bounds are built in", o.name)
		case "protocol":
			if args != "dns" {
				t.lose(o.line, "protocol %s: upstream servers are queried by UDP, TCP and TLS", args)
			}
		default:
			t.lose(o.line, "forward: %s", strings.TrimSpace(o.name+" "+args))
		}
	}
	return name
}

func (t *translator) cache(d directive) {
	args := d.args
	if len(args) > 0 {
		if _, err := strconv.Atoi(args[0]); err == nil {
			t.seconds(d.line, "cacheTTL", args[0])
			if n, _ := strconv.Atoi(args[0]); n < 1800 {
				t.seconds(d.line, "negativeTTL", args[0])
			}
			args = args[1:]
		}
	}
	if len(args) > 0 {
		t.lose(d.line, "cache for %s only: there is one cache for all zones", strings.Join(args, " "))
	}
	for _, o := range d.block {
		switch o.name {
		case "success", "denial":
			key := map[string]string{"success": "cacheTTL", "denial": "negativeTTL"}[o.name]
			if len(o.args) > 0 {
				t.note(o.line, "%s: the capacity in bytes is dns.cacheMiB", o.name)
			}
			if len(o.args) > 1 {
				delete(t.from, place(t.dns, key)) // more specific than the cache's own TTL
				t.seconds(o.line, key, o.args[1])
			}
			if len(o.args) > 2 && o.args[2] != "0" {
				t.lose(o.line, "%s: a minimum TTL of %s: no answer is cached longer than its TTL", o.name, o.args[2])
			}
		case "serve_stale":
			stale := "1h"
			if len(o.args) > 0 {
				stale = o.args[0]
			}
			if len(o.args) > 1 {
				t.lose(o.line, "serve_stale %s: a client waits 1.8 s for the servers before it gets a stale answer",
					strings.Join(o.args[1:], " "))
			}
			t.duration(o.line, "staleFor", stale)
		case "disable":
			if len(o.args) < 2 || slices.ContainsFunc(o.args[1:],
				func(z string) bool { return zone(z) != t.top["clusterDomain"] }) {
				t.lose(o.line, "disable %s: the cache is for all names outside of the cluster",
					strings.Join(o.args, " "))
			}
		case "prefetch":
			t.note(o.line, "prefetch: built in")
		case "servfail":
			if strings.Join(o.args, " ") != "1s" {
				t.lose(o.line, "servfail %s: a failure is cached for 1 s", strings.Join(o.args, " "))
			}
		default:
			t.lose(o.line, "cache: %s", strings.TrimSpace(o.name+" "+strings.Join(o.args, " ")))
		}
	}
}

func (t *translator) seconds(line int, key, s string) { t.duration(line, key, s+"s") }

// duration sets a time within the setting's limits, or reports it.
func (t *translator) duration(line int, key, s string) {
	d, err := time.ParseDuration(s)
	low, high := time.Second, 24*time.Hour
	if key == "staleFor" {
		low, high = 0, 168*time.Hour
	}
	if err != nil || d < low || d > high {
		t.lose(line, "%s of %s: allowed: %s to %s", key, s, low, high)
		return
	}
	t.set(line, t.dns, key, d.String())
}

func (t *translator) hostsOf(d directive) {
	zones := t.server
	if len(d.args) > 1 {
		zones = nil
		for _, z := range d.args[1:] {
			zones = append(zones, zone(z))
		}
	}
	switch {
	case len(d.args) > 0:
		t.lose(d.line, "hosts %s: files are not read; write the lines of %s into the Corefile",
			strings.Join(d.args, " "), d.args[0])
	case len(d.block) == 0:
		t.lose(d.line, "hosts: files are not read; write the lines of /etc/hosts into the Corefile")
	}
	falls := false
	for _, o := range d.block {
		switch o.name {
		case "fallthrough":
			falls = len(o.args) == 0 || !slices.ContainsFunc(zones, func(z string) bool { return !within(z, o.args) })
		case "reload":
			t.note(o.line, "reload: a changed setting is read at a restart, which loses no query")
		case "ttl":
			if strings.Join(o.args, "") != "30" {
				t.lose(o.line, "ttl %s: dns.hosts have 30 s", strings.Join(o.args, " "))
			}
		case "no_reverse":
			t.lose(o.line, "no_reverse: the addresses of dns.hosts have names")
		default:
			t.host(o, zones)
		}
	}
	if !falls {
		t.lose(d.line, "hosts without fallthrough: names that it lacks are forwarded")
	}
}

// host parses a line of addresses, in zones.
func (t *translator) host(o directive, zones []string) {
	a, err := netip.ParseAddr(o.name)
	if err != nil || len(o.args) == 0 {
		t.lose(o.line, "hosts: %s", strings.TrimSpace(o.name+" "+strings.Join(o.args, " ")))
		return
	}
	for _, name := range o.args {
		if !within(zone(name), zones) {
			t.lose(o.line, "hosts: %s is in none of the zones of hosts", name)
			continue
		}
		have, _ := t.hosts[zone(name)].([]string)
		t.hosts[zone(name)] = append(have, a.String())
	}
}

// within reports whether a name is one of the zones, or below one.
func within(name string, zones []string) bool {
	return slices.ContainsFunc(zones, func(z string) bool {
		z = zone(z)
		return z == "" || name == z || strings.HasSuffix(name, "."+z)
	})
}
