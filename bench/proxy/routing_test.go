package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"wayleave.dev/bench/internal/result"
	"wayleave.dev/ingress"
	"wayleave.dev/ingress/nginx"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/proxy"
	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
	"wayleave.dev/source/manifest"
)

// town is a generated set of Ingresses, on its own hosts, with its requests.
type town struct {
	list  []*model.Ingress
	hosts []string
}

// The parts of generated Ingresses.
var (
	townPlain = []string{"/", "/foo", "/foo/bar", "/Foo", "/api/v2", "/api", "/a", "/caf%C3%A9", "/dir/", "/foo.bar",
		"/long/path/of/some/length", "/.well-known/acme-challenge/token"}
	townPatterns = []string{"/(.*)", "/foo(/|$)(.*)", "/foo/(.+)", "/api/v[0-9]+", "/()(.*)", "/[a-z]+/x", "/foo|/bar",
		"/(?!foo)(.*)", "/a/?$"}
	townTargets = []string{"/", "/$1", "/$2", "/new/$1", "/foo", "https://new.test/$1", "http://new.test$request_uri?",
		"/x?y=1", "$scheme://$host/moved/$1"}
	townPaths = []string{"/", "/foo", "/foo/", "/foobar", "/FOO", "/foo/bar", "/foo/bar/x", "/FOO/Bar", "/api",
		"/api/v2", "/api/v2/x", "/API/V2x", "/apix", "/a", "/a/", "/ab", "/caf%C3%A9", "/caf%C3%A9/x", "/dir",
		"/dir/", "/dir/x", "/foo.bar", "/fooxbar", "/foo%20bar", "/foo//bar", "/foo/../api", "/%66oo",
		"/long/path/of/some/length", "/LONG/path/of/some/length/x", "/zzz", "/bar", "/x/bar",
		"/.well-known/acme-challenge/token", "/b/x"}
)

func townOf(r *rand.Rand, n int) *town {
	z := &town{hosts: []string{fmt.Sprintf("a.s%d.test", n), fmt.Sprintf("b.s%d.test", n),
		fmt.Sprintf("*.w.s%d.test", n)}}
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	for k := range 1 + r.IntN(4) {
		i := &model.Ingress{Name: model.Name{Namespace: fmt.Sprintf("s%d", n), Name: fmt.Sprintf("i%d", k)},
			Created: time.Unix(int64(1000+k), 0), Annotations: map[string]string{}, ClassAnnotation: "nginx"}
		note := func(name, v string) { i.Annotations["nginx.ingress.kubernetes.io/"+name] = v }
		switch r.IntN(10) {
		case 0, 1:
			note("use-regex", "true")
		case 2, 3, 4:
			note("rewrite-target", pick(townTargets))
		case 5:
			note("permanent-redirect", "https://elsewhere.test/x")
		case 6:
			note("temporal-redirect", "http://elsewhere.test")
			note("temporal-redirect-code", pick([]string{"303", "307", "308"}))
		case 7:
			note("app-root", "/foo")
		case 8:
			note("force-ssl-redirect", "true")
		}
		for j := range 1 + r.IntN(2) {
			rule := model.IngressRule{Index: j, Host: pick(z.hosts)}
			for m := range 1 + r.IntN(3) {
				p := model.IngressPath{Index: m, Type: model.PathType(r.IntN(3)), Path: pick(townPlain),
					Backend: model.IngressBackend{Service: pick([]string{"x", "y", "z", "none"}), Port: 80}}
				if p.Type == model.PathImplementationSpecific && r.IntN(2) == 0 &&
					(i.Annotations["nginx.ingress.kubernetes.io/use-regex"] != "" ||
						i.Annotations["nginx.ingress.kubernetes.io/rewrite-target"] != "") {
					p.Path = pick(townPatterns)
				}
				rule.Paths = append(rule.Paths, p)
			}
			i.Rules = append(i.Rules, rule)
		}
		if r.IntN(8) == 0 {
			i.Default = &model.IngressBackend{Service: "d", Port: 80}
		}
		z.list = append(z.list, i)
	}
	return z
}

// requests returns the requests for a set.
func (z *town) requests(r *rand.Rand, n int) (out []nginx.Request) {
	for range n {
		target := townPaths[r.IntN(len(townPaths))]
		if r.IntN(3) == 0 {
			target += "?q=1"
		}
		host := strings.Replace(z.hosts[r.IntN(len(z.hosts))], "*", "sub", 1)
		out = append(out, nginx.Request{Method: http.MethodGet, Host: host, Target: target, Header: http.Header{}})
	}
	return out
}

// decisions are the permanent differences: what they are, and the rule that decides.
var decisions = map[string]string{
	"exact first": "An Exact path that equals the request comes first here, also before a longer expression: " +
		"Kubernetes, Ingress, Multiple matches, where Exact comes before Prefix.",
	"elements": "Where a path ends with a slash, nginx sends the request without it there (301). Here a " +
		"Prefix matches it, since /foo/ matches /foo for Kubernetes, and an Exact path does not.",
	"alternatives": "An expression with alternatives is anchored as a whole here; nginx anchors the first one " +
		"alone, so that /foo|/bar matches /x/bar.",
	"root of the host": "ingress-nginx gives what no path of the host has the annotations and the default backend " +
		"of the host's first Ingress, so that a redirect of /old redirects all of the host. Here annotations are of " +
		"the paths of their Ingress, and the oldest default backend counts.",
	"escapes": "Escapes in a rule's path are decoded here; nginx compares the decoded path of a request " +
		"with them as text, so that they never match.",
	"dots": "A dot in a path without other marks of an expression is a dot here. On a host with " +
		"expressions nginx takes it for any byte, so that /foo.bar matches /foo/bar.",
	"look-ahead": "RE2 has none: the path is left out, with an Event, and ingress check says NO.",
	"query": "A query in the target of rewrite-target is refused there since validation is the default, " +
		"and taken here.",
	"no Service": "A path that two Ingresses have falls to the younger one here while the Service of the " +
		"older one is missing.",
	"spelling": "A host with a guarded or closed path refuses spellings that servers read in two ways: " +
		"ingress-options.md, The spelling of a path.",
	"dot segments": "A host with a guarded or closed path sends paths on without their dot segments: RFC " +
		"3986, 6.2.2.3.",
}

// decide returns the decision that a difference belongs to; empty for none. here is the path that serves the request in
// Wayleave; nil for none.
func (z *town) decide(q nginx.Request, uri, we string, there nginx.Answer, here *schema.Path) string {
	switch {
	case there.Root:
		return "root of the host"
	case strings.HasPrefix(we, "400"):
		return "spelling"
	case here != nil && here.Kind == schema.Exact && here.Path == uri:
		return "exact first"
	case strings.Contains(there.Path, "(?!"):
		return "look-ahead"
	case strings.Contains(there.Path, "foo.bar") && !strings.HasPrefix(strings.ToLower(uri), "/foo.bar"):
		return "dots"
	case strings.Contains(there.Path, "|/"):
		return "alternatives"
	case here != nil && strings.Contains(uri, "é"):
		return "escapes"
	case there.Added, here != nil && here.Path == uri+"/":
		return "elements"
	case here != nil && strings.Contains(q.Target, "..") && there.Backend == here.Backend:
		return "dot segments"
	case z.hasQuery(q.Host):
		return "query"
	case strings.Contains(there.Backend, "/none:") && here != nil && !strings.HasPrefix(here.Source, "Ingress "+
		there.Ingress.String()+" "):
		return "no Service"
	}
	return ""
}

// hasQuery reports whether an Ingress of a host has a rewrite-target with a query, which changes how all paths of the
// host are matched.
func (z *town) hasQuery(host string) bool {
	return slices.ContainsFunc(z.list, func(i *model.Ingress) bool {
		return strings.Contains(i.Annotations["nginx.ingress.kubernetes.io/rewrite-target"], "?") &&
			slices.ContainsFunc(i.Rules, func(r model.IngressRule) bool {
				return strings.Replace(r.Host, "*", "sub", 1) == host
			})
	})
}

// answerText formats the model's answer like ask's.
func answerText(a nginx.Answer, served map[string]netip.AddrPort) string {
	if a.Status != 0 {
		return strings.TrimSpace(fmt.Sprintf("%d %s", a.Status, a.Location))
	}
	if _, ok := served[a.Backends[0]]; !ok {
		return "503"
	}
	return a.Backends[0] + " as " + a.Target
}

// sameAnswer compares two answers to a request. Escapes may be spelled differently, a Location may be relative, and
// ingress-nginx removes the trailing slash in a redirect to https.
func sameAnswer(q nginx.Request, a, b string) bool {
	plain := func(s string) string {
		if u, err := url.PathUnescape(s); err == nil {
			s = u
		}
		if strings.HasPrefix(s, "308 ") {
			s = strings.TrimSuffix(s, "/")
		}
		return strings.Replace(s, " http://"+q.Host+"/", " /", 1)
	}
	return plain(a) == plain(b)
}

// routingJudge lets a real nginx and the proxy serve the same sets.
type routingJudge struct {
	t             *testing.T
	ns            *testnet.NS
	nginxAt, ours int
}

// ask returns status, Location, and the endpoint's request.
func (j *routingJudge) ask(port int, q nginx.Request) string {
	c, err := j.ns.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
	if err != nil {
		j.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", q.Method, q.Target, q.Host)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err.Error()
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	if resp.StatusCode == http.StatusOK {
		return string(body)
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("Location")))
}

// TestRouting compares generated requests, and writes docs/ingress-judge.md.
func TestRouting(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN)")
	}
	if _, err := exec.LookPath("nginx"); err != nil {
		t.Skip("nginx is not installed (Debian: apt-get install nginx-light)")
	}
	sets, each := 150, 50
	if testing.Short() {
		sets, each = 20, 25
	}
	ns := testnet.New(t, "routing")
	j := &routingJudge{t: t, ns: ns, nginxAt: 9002, ours: 9001}
	r := rand.New(rand.NewPCG(15, 2))
	var towns []*town
	var all []*model.Ingress
	for n := range sets {
		z := townOf(r, n)
		towns, all = append(towns, z), append(all, z.list...)
	}
	theirs := nginx.New(all, backendKey)
	served := j.endpoints(all)
	j.serveNginx(theirs, served)
	mine := j.serveOurs(all, served)
	same, asked, undecided, wrong := 0, 0, 0, 0
	counts, examples := map[string]int{}, map[string][]string{}
	for _, z := range towns {
		for _, q := range z.requests(r, each) {
			asked++
			judge, we := j.ask(j.nginxAt, q), j.ask(j.ours, q)
			there := theirs.Answer(q)
			if model := answerText(there, served); !sameAnswer(q, judge, model) {
				if wrong++; wrong > 40 {
					t.Fatal("the model is wrong too often")
				}
				t.Errorf("%s%s: nginx: %s; the model of it: %s", q.Host, q.Target, judge, model)
			}
			if sameAnswer(q, judge, we) {
				same++
				continue
			}
			path, _, _ := strings.Cut(q.Target, "?")
			clean, _ := table.Clean([]byte(path), nil)
			m := &table.Match{}
			mine.Route([]byte(q.Host), clean, m)
			why := z.decide(q, string(clean), we, there, m.Path)
			if decisions[why] == "" {
				if undecided++; undecided < 40 {
					t.Errorf("%s%s: nginx: %s by %s of %s; Wayleave: %s by %+v: no decision covers that",
						q.Host, q.Target,
						judge, there.Path, there.Ingress, we, m.Path)
				}
				continue
			}
			if counts[why]++; len(examples[why]) == 0 {
				examples[why] = []string{q.Target, judge, we}
			}
		}
	}
	t.Logf("%d requests, %d have the same answer, %v", asked, same, counts)
	if t.Failed() || testing.Short() {
		return
	}
	j.write(asked, sets, same, counts, examples)
}

// write writes the page.
func (j *routingJudge) write(asked, sets, same int, counts map[string]int, examples map[string][]string) {
	rows := [][]string{{"difference", "requests", "for example", "nginx", "Wayleave", "decided by"}}
	for _, why := range slices.Sorted(maps.Keys(counts)) {
		e := examples[why]
		for i := range e {
			e[i] = "`" + strings.ReplaceAll(e[i], "|", `\|`) + "`"
		}
		rows = append(rows, append(append([]string{why, fmt.Sprint(counts[why])}, e...),
			strings.ReplaceAll(decisions[why], "|", `\|`)))
	}
	page := result.New(result.Docs, "ingress-judge", "Comparison with ingress-nginx: routing")
	page.Text("`cd bench && go test -run TestRouting ./proxy` generates this page: it makes %d sets of Ingresses "+
		"from a seed, writes ingress-nginx's configuration for them, serves them by nginx %s and by the proxy, and "+
		"sends %d requests to both. The model of ingress-nginx in ingress/nginx, which `wayleave ingress check "+
		"--requests` uses, predicted each of nginx's answers. The test compares paths, rewrites, redirects, host "+
		"names and their priorities, but not guards. %d requests have the same answer from both. The others:", sets,
		version("nginx -v"), asked, same)
	page.Table(rows)
	if err := page.Write(); err != nil {
		j.t.Fatal(err)
	}
}

// backendKey returns the key of a Service's port.
func backendKey(namespace string, b model.IngressBackend) string {
	return fmt.Sprintf("%s/%s:%d", namespace, b.Service, b.Port)
}

// endpoints are one server for each backend, which answers with its name and the request.
func (j *routingJudge) endpoints(all []*model.Ingress) map[string]netip.AddrPort {
	out, port := map[string]netip.AddrPort{}, 20000
	for _, k := range append(backends(all), "404", "503") {
		if strings.Contains(k, "/none:") {
			continue
		}
		port++
		out[k] = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port))
		l := j.ns.Listen("tcp", out[k].String())
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if status, err := strconv.Atoi(k); err == nil { // the default backend, and one without endpoints
				w.WriteHeader(status)
				return
			}
			fmt.Fprintf(w, "%s as %s", k, r.RequestURI)
		})}
		go func() { _ = s.Serve(l) }()
		j.t.Cleanup(func() { _ = s.Close() })
	}
	return out
}

// backends returns the keys of all backends.
func backends(all []*model.Ingress) (out []string) {
	for _, i := range all {
		list := []model.IngressBackend{}
		for _, r := range i.Rules {
			for _, p := range r.Paths {
				list = append(list, p.Backend)
			}
		}
		if i.Default != nil {
			list = append(list, *i.Default)
		}
		for _, b := range list {
			if k := backendKey(i.Name.Namespace, b); !slices.Contains(out, k) {
				out = append(out, k)
			}
		}
	}
	return out
}

func (j *routingJudge) serveNginx(c *nginx.Config, served map[string]netip.AddrPort) {
	text := nginxHead + "http {\n  access_log off; absolute_redirect off; server_names_hash_max_size 65536; " +
		"server_names_hash_bucket_size 128; " + nginxTemps +
		"\n  proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $http_host;\n" +
		c.Text("127.0.0.1:PORT", func(backend string) string {
			a, ok := served[backend]
			if !ok {
				a = served["503"]
			}
			if backend == "" {
				a = served["404"]
			}
			return "http://" + a.String()
		}) + "}\n"
	run(j.t, j.ns, j.nginxAt, "nice", "nginx -c "+configured(j.t, text, j.nginxAt, endpointPort))
}

// serveOurs plans the Ingresses, and serves them by the proxy.
func (j *routingJudge) serveOurs(all []*model.Ingress, served map[string]netip.AddrPort) *table.Table {
	store, err := model.NewStore()
	if err != nil {
		j.t.Fatal(err)
	}
	j.t.Cleanup(func() { _ = store.Close() })
	var yaml strings.Builder
	for k := range served {
		if !strings.Contains(k, "/") {
			continue
		}
		ns, rest, _ := strings.Cut(k, "/")
		name, port, _ := strings.Cut(rest, ":")
		fmt.Fprintf(&yaml, "---\n{apiVersion: v1, kind: Service, metadata: {namespace: %s, name: %q}, spec: "+
			"{clusterIP: 10.96.0.1, ports: [{port: %s}]}}\n", ns, name, port)
		fmt.Fprintf(&yaml, "---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, "+
			"metadata: {namespace: %s, name: %s-1, labels: {kubernetes.io/service-name: %q}}, ports: [{port: 80}], "+
			"endpoints: [{addresses: [10.244.0.7]}]}\n", ns, name, name)
	}
	if _, err := manifest.Read(store, "services", strings.NewReader(yaml.String())); err != nil {
		j.t.Fatal(err)
	}
	if err := store.Write(func(tx *model.Writer) {
		for _, i := range all {
			tx.PutIngress(i)
		}
	}); err != nil {
		j.t.Fatal(err)
	}
	plan := ingress.Route(store.Snapshot(), ingress.Settings{AdoptNginx: true}, time.Now())
	for k := range plan.Backends {
		plan.Backends[k] = &schema.Backend{Key: k, Endpoints: []schema.Endpoint{{Addr: served[k]}}}
	}
	settings := upstream.Defaults()
	settings.Dial = func(_ context.Context, network, addr string) (net.Conn, error) {
		return j.ns.Dial(network, addr, 5*time.Second)
	}
	p := &proxy.Proxy{Upstreams: upstream.NewSet(settings), Tries: 1, Timeouts: proxy.Timeouts{Connect: 5 * time.Second,
		Send: 10 * time.Second, Read: 10 * time.Second}}
	p.Upstreams.Replace(plan.Backends)
	p.SetTable(plan.Table)
	s := &h1.Server{Limits: h1.DefaultLimits(), Handle: p.Handle}
	l := j.ns.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", j.ours))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.Serve(context.Background(), c, nil, false)
		}
	}()
	return plan.Table
}
