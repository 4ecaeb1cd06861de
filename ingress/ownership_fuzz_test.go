package ingress

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/proxy/regex"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// randomSet is a random set of Ingresses of several namespaces, whose authors keep requests out of
// some of their paths, and what must be kept out by a reference that knows neither the planner
// nor the table: it looks at every path of every Ingress.
type randomSet struct {
	t    testing.TB
	list []*model.Ingress
}

var (
	mazeNamespaces = []string{"n0", "n1", "n2", "n3"}
	mazeHosts      = []string{"a.test", "a.test", "b.a.test", "*.a.test", ""}
	mazeLiterals   = []string{"/", "/adm", "/admin", "/admin/", "/admin/x", "/api", "/Admin",
		"/admin/x/y/z/very/long/path", "/%61dmin"}
	mazePatterns = []string{"/(.*)", "/admin(/|$)(.*)", "/adm.*", "/(?!x)(.*)", "/admin(?=/)", "/[a]dmin", "/a|/b",
		"/(.*)(.*)(.*)(.*)", "/api/v[0-9]+", "/(",
		"/admin/.*", "/ADMIN/?", "/admins?(?!x)", "/.*dmin.*", "/admin/x/(.*)", "/()(.*)"}
	mazeGuards = [][2]string{{"whitelist-source-range", "192.0.2.0/24"}, {"whitelist-source-range", "192.0.2.0/24,x"},
		{"auth-tls-secret", "n0/ca"}, {"auth-type", "basic"},
		{"auth-url", "gopher://x"}, {"auth-type", "digest"}, {"modsecurity-snippet", "x"},
		{"denylist-source-range", "10.0.0.0/8"}, {"allowlist-source-range", "198.51.100.0/24"}}
	mazeNames = []string{"a.test", "b.a.test", "z.a.test", "c.test", "other.test"}
	mazePaths = []string{"/", "/adm", "/admin", "/admin/", "/admin/x", "/ADMIN", "/Admin", "/admin/x/y", "/api",
		"/api/v1", "//admin", "/x/../admin", "/%61dmin", "/administrator",
		"/b", "/admin/x/y/z/very/long/path", "/x", "/admins"}
)

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// newRandomSet makes a set.
func newRandomSet(t testing.TB, r *rand.Rand) *randomSet {
	z := &randomSet{t: t}
	for n := range 2 + r.IntN(7) {
		i := &model.Ingress{Name: model.Name{Namespace: pick(r, mazeNamespaces), Name: fmt.Sprintf("i%d", n)},
			Created: time.Unix(int64(1000+r.IntN(4)), 0), Annotations: map[string]string{}}
		note := func(k, v string) { i.Annotations[nginxPrefix+k] = v }
		if r.IntN(2) == 0 {
			g := pick(r, mazeGuards)
			note(g[0], g[1])
		}
		switch r.IntN(4) {
		case 0:
			note("use-regex", "true")
		case 1:
			note("rewrite-target", "/$1")
		}
		switch r.IntN(12) {
		case 0, 1:
			note("canary", "true")
			note("canary-weight", pick(r, []string{"0", "50", "100"}))
		case 2, 3:
			note("server-alias", pick(r, []string{"c.test", "b.a.test", "*.a.test"}))
		case 4:
			note("app-root", "/x")
		case 5:
			i.Default = &model.IngressBackend{Service: "web", Port: 80}
		}
		for k := range 1 + r.IntN(2) {
			rule := model.IngressRule{Index: k, Host: pick(r, mazeHosts)}
			for j := range 1 + r.IntN(3) {
				p := model.IngressPath{Index: j, Type: model.PathType(r.IntN(3)), Path: pick(r, mazeLiterals),
					Backend: model.IngressBackend{Service: pick(r, []string{"web", "web", "none"}), Port: 80}}
				if r.IntN(2) == 0 && p.Type != model.PathExact {
					p.Path = pick(r, mazePatterns)
				}
				rule.Paths = append(rule.Paths, p)
			}
			i.Rules = append(i.Rules, rule)
		}
		z.list = append(z.list, i)
	}
	return z
}

// plan plans the set as it comes in an order.
func (z *randomSet) plan(order []int) *fixture {
	var yaml strings.Builder
	for _, ns := range mazeNamespaces {
		fmt.Fprintf(&yaml, "---\n{apiVersion: v1, kind: Service, metadata: {namespace: %s, name: web}, spec: "+
			"{clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n", ns)
		fmt.Fprintf(&yaml, "---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, "+
			"metadata: {namespace: %s, name: web-1, labels: {kubernetes.io/service-name: web}}, ports: [{port: "+
			"80}], endpoints: [{addresses: [10.244.0.7]}]}\n", ns)
	}
	w := newFixture(z.t, Settings{Default: true}, yaml.String())
	for _, n := range order {
		w.put(z.list[n])
	}
	return w
}

func (z *randomSet) has(i *model.Ingress, key string) bool {
	return i.Annotations[nginxPrefix+key] != ""
}

// guard says whether the Ingress's author keeps requests out, and by which sources, allowed or
// denied; nil sources stand for what cannot be done, so that nothing may be let in.
func (z *randomSet) guard(i *model.Ingress) (sources []netip.Prefix, guarded bool) {
	for _, g := range mazeGuards {
		if v := i.Annotations[nginxPrefix+g[0]]; v == g[1] {
			n, err := netip.ParsePrefix(v)
			if err != nil || !strings.HasSuffix(g[0], "list-source-range") {
				return nil, true
			}
			return []netip.Prefix{n}, true
		}
	}
	return nil, false
}

// way is a path of the reference.
type way struct {
	of   *model.Ingress
	host string
	// text is the path, decoded where it is none; re is nil for a path that is no pattern and
	// for one that cannot be read, which bad says.
	text    string
	exact   bool
	pattern bool
	re      *regexp.Regexp
}

func (z *randomSet) way(i *model.Ingress, host string, p model.IngressPath) way {
	y := way{of: i, host: host, text: p.Path, exact: p.Type == model.PathExact}
	target := i.Annotations[nginxPrefix+"rewrite-target"]
	if (target != "" || z.has(i, "use-regex")) && !y.exact && (strings.ContainsAny(p.Path, `()[]{}*+?|^$\`) ||
		strings.Contains(target, "$")) {
		y.pattern = true
		y.re, _ = regexp.Compile("(?is)^(?:" + p.Path + ")")
	} else if strings.Contains(y.text, "%61") {
		y.text = strings.ReplaceAll(y.text, "%61", "a")
	}
	return y
}

// matches as Kubernetes and RE2 define it.
func (y *way) matches(path string) bool {
	switch {
	case y.re != nil:
		return y.re.MatchString(path)
	case y.pattern:
		return strings.HasPrefix(strings.ToLower(path), strings.ToLower(regex.LiteralPrefix(y.text)))
	case y.exact:
		return path == y.text
	}
	p := strings.TrimRight(y.text, "/")
	return path == p || strings.HasPrefix(path, p+"/")
}

func (y *way) rank() int {
	if y.pattern {
		return len(strings.TrimRight(regex.LiteralPrefix(y.text), "/"))
	}
	return len(strings.TrimRight(y.text, "/"))
}

func (y *way) before(o *way) bool {
	return len(y.text) > len(o.text) || len(y.text) == len(o.text) && y.text > o.text
}

// same says whether two paths are one place.
func (y *way) same(o *way) bool {
	if y.exact != o.exact {
		return false
	}
	marks := func(s string) bool { return strings.ContainsAny(s, `()[]{}*+?|^$\`) }
	return y.text == o.text || !y.exact && !marks(y.text) && !marks(o.text) &&
		strings.TrimRight(y.text, "/") == strings.TrimRight(o.text, "/")
}

func (z *randomSet) ways(hosts ...string) (out []way) {
	for _, i := range z.list {
		for _, r := range i.Rules {
			if slices.Contains(hosts, r.Host) {
				for _, p := range r.Paths {
					out = append(out, z.way(i, r.Host, p))
				}
			}
		}
	}
	return out
}

// opens says why a path may be served open though a guarded one matches the request, too.
func (y *way) opens(g *way, owner string) string {
	own := owner == y.of.Name.Namespace && owner != g.of.Name.Namespace
	switch {
	case y.exact:
		return "it is Exact"
	case own && y.rank() >= g.rank():
		return "it is of the host's owner"
	case !y.pattern && !g.pattern && y.rank() > g.rank():
		return "it is the longer Prefix"
	case !y.pattern && g.pattern && y.before(g):
		return "it is longer than the pattern"
	case y.pattern && y.before(g) && y.rank() > g.rank():
		return "it names more"
	}
	return ""
}

// lost says whether another Ingress has the place of a path.
func (z *randomSet) lost(g *way, all []way) bool {
	return slices.ContainsFunc(all, func(o way) bool {
		_, guarded := z.guard(o.of)
		out := o.pattern && o.re == nil && !guarded // it is left out
		return o.of != g.of && !z.has(o.of, "canary") && !out && older(o.of, g.of) < 0 && o.same(g)
	})
}

// source is the Ingress and path that a path of the table comes from; way is nil for one that no
// rule has.
func (z *randomSet) source(p *schema.Path) (*model.Ingress, *way) {
	f := strings.Fields(p.Source)
	for _, i := range z.list {
		if i.Name.String() != f[1] {
			continue
		}
		var k, j int
		if n, _ := fmt.Sscanf(f[2], "spec.rules[%d].http.paths[%d]", &k, &j); n != 2 {
			return i, nil
		}
		y := z.way(i, i.Rules[k].Host, i.Rules[k].Paths[j])
		return i, &y
	}
	z.t.Fatalf("no Ingress is the source %q", p.Source)
	return nil, nil
}

// check asks for one path.
func (z *randomSet) check(hosts map[string]*schema.Host, name, target string) error {
	m, _, ok := find(hosts, "https://"+name+target)
	if !ok || m.TooLong {
		return nil
	}
	i, served := z.source(m.Path)
	sources, guarded := z.guard(i)
	open := !m.Path.Closed && len(sourcesOf(m.Path)) == 0 && (m.Ready == nil || m.Ready.Err == nil)
	if guarded && open && (m.Path.Options == nil || m.Path.Options.Redirect == "") {
		return fmt.Errorf("%s is served open, and its Ingress keeps requests out", m.Path.Source)
	}
	if guarded && !open && !m.Path.Closed && !reflect.DeepEqual(sourcesOf(m.Path), sources) {
		return fmt.Errorf("%s lets %v in, its Ingress %v", m.Path.Source, sourcesOf(m.Path), sources)
	}
	if m.Path.Options != nil {
		for _, c := range m.Path.Options.Canary {
			of, _ := z.source(&schema.Path{Source: c.Source})
			if s, guarded := z.guard(of); m.Path.Closed || guarded && (s == nil || !reflect.DeepEqual(s, sources)) {
				return fmt.Errorf("%s has the canary %s", m.Path.Source, c.Source)
			}
		}
	}
	if !open || m.Path.Options != nil && m.Path.Options.Redirect != "" {
		return nil
	}
	return z.opened(hosts, m, served, name, target)
}

// sourcesOf are the clients that a path allows or denies.
func sourcesOf(p *schema.Path) []netip.Prefix {
	if p.Options == nil {
		return nil
	}
	return slices.Concat(p.Options.Sources, p.Options.Denied)
}

// opened looks for a guard that should have been asked.
func (z *randomSet) opened(hosts map[string]*schema.Host, m table.Match, served *way, name, target string) error {
	clean, _ := table.Clean([]byte(target), nil)
	of := []string{m.Host.Name}
	if m.Host.Name == "" && name != "" { // a wildcard host keeps out what falls through
		if _, parent, ok := strings.Cut(name, "."); ok {
			of = append(of, "*."+parent)
		}
	}
	for _, i := range z.list { // guards of the host that it is an alias of
		if slices.Contains(strings.Split(i.Annotations[nginxPrefix+"server-alias"], ","), m.Host.Name) &&
			served != nil && served.host != m.Host.Name && firstHost(i) == served.host {
			of = append(of, served.host)
		}
	}
	all := z.ways(of...)
	for _, g := range all {
		_, guarded := z.guard(g.of)
		if !guarded || z.has(g.of, "canary") || !g.matches(string(clean)) || z.lost(&g, all) || served == nil &&
			m.Path.Source == "" {
			continue
		}
		if h := hosts[g.host]; h == nil || h.Namespace == "" {
			continue
		}
		if served != nil && served.host == g.host || served != nil && m.Host.Name != "" {
			if served.opens(&g, m.Host.Namespace) != "" {
				continue
			}
		}
		if m.Host.Name == "" && g.host != "" && z.openThere(&g, hosts[g.host].Namespace, string(clean)) {
			continue
		}
		return fmt.Errorf("%s %s is served by %s (%v), and Ingress %s keeps it out at %s%s", name, target,
			m.Path.Source, served, g.of.Name, g.host, g.text)
	}
	return nil
}

// openThere says whether the host of a guarded path has another one that is open for a request.
func (z *randomSet) openThere(g *way, owner, path string) bool {
	all := z.ways(g.host)
	return slices.ContainsFunc(all, func(y way) bool {
		_, guarded := z.guard(y.of)
		return !guarded && !z.has(y.of, "canary") && y.matches(path) && !z.lost(&y, all) && y.opens(g, owner) != ""
	})
}

// String shows the set as a failure needs it.
func (z *randomSet) String() string {
	var b strings.Builder
	for _, i := range z.list {
		fmt.Fprintf(&b, "%s created %d %v default %v\n", i.Name, i.Created.Unix(), i.Annotations, i.Default != nil)
		for _, r := range i.Rules {
			for _, p := range r.Paths {
				fmt.Fprintf(&b, "  %q %s type %d to %s\n", r.Host, p.Path, p.Type, p.Backend.Service)
			}
		}
	}
	return b.String()
}

// guardsHold makes a set and asks for everything: nothing is served open that an author keeps
// out, and the order in which objects came does not matter.
func guardsHold(t testing.TB, seed uint64) (*randomSet, *fixture) {
	r := rand.New(rand.NewPCG(seed, 14))
	z := newRandomSet(t, r)
	w := z.plan(r.Perm(len(z.list)))
	hosts := w.hosts()
	for _, name := range mazeNames {
		for _, target := range mazePaths {
			if err := z.check(hosts, name, target); err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, z)
			}
		}
	}
	if again := z.plan(r.Perm(len(z.list))).hosts(); !reflect.DeepEqual(hosts, again) {
		t.Fatalf("seed %d: the plans follow the order in which objects came\n%s", seed, z)
	}
	return z, w
}

// Whatever an author wrote to keep requests out, no spelling of a request and no other object
// opens it.
func TestNoObjectOpensAGuard(t *testing.T) {
	sets := uint64(400)
	if testing.Short() {
		sets = 60
	}
	for seed := range sets {
		guardsHold(t, seed)
	}
}

// The same through a real proxy: what it serves is what the table says, and that is checked.
func TestNoObjectOpensAGuardOverSockets(t *testing.T) {
	n := newNode(t)
	for seed := range uint64(8) {
		z, w := guardsHold(t, 1000+seed)
		n.play(w.plans)
		for _, name := range mazeNames {
			for _, target := range mazePaths {
				m, _, ok := find(w.hosts(), "http://"+name+target)
				// no rule denies the test
				open := ok && !m.TooLong && !m.Path.Closed &&
					(m.Path.Options == nil || len(m.Path.Options.Sources) == 0 && m.Ready.Err == nil)
				if got := n.answer("http://" + name + target); strings.Contains(got, "/web:80") && !open {
					t.Fatalf("seed %d: %s%s is %s, and should be kept out\n%s", seed, name, target, got, z)
				}
			}
		}
	}
}

func FuzzNoObjectOpensAGuard(f *testing.F) {
	for seed := range uint64(16) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) { guardsHold(t, seed) })
}
