package explain

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"wayleave.dev/ingress"
	"wayleave.dev/ingress/nginx"
	"wayleave.dev/model"
	"wayleave.dev/proxy"
	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/upstream"
)

// Difference is a request that ingress-nginx and Wayleave serve differently.
type Difference struct {
	Request nginx.Request
	// Theirs and Ours describe the two results.
	Theirs, Ours string
	// Ingress is the Ingress of the path that serves it in ingress-nginx, otherwise here; zero for none.
	Ingress model.Name
}

// String returns a line for people.
func (d Difference) String() string {
	scheme := "http"
	if d.Request.TLS {
		scheme = "https"
	}
	return fmt.Sprintf("%s %s://%s%s: ingress-nginx: %s; Wayleave: %s", d.Request.Method, scheme, d.Request.Host,
		d.Request.Target, d.Theirs, d.Ours)
}

// IngressRouting compares a model of ingress-nginx's routing with Wayleave's own, for which it uses the proxy's code.
// It is not safe for concurrent use.
type IngressRouting struct {
	theirs *nginx.Config
	ours   *proxy.Proxy
	// served holds the backends that have endpoints.
	served map[string]bool
	list   []*model.Ingress
}

// Routing plans the Ingresses of Wayleave for both.
func (c IngressCheck) Routing() *IngressRouting {
	r := &IngressRouting{served: map[string]bool{}}
	for i := range c.Snapshot.Ingresses() {
		if c.Settings.Ours(c.Snapshot, i) {
			r.list = append(r.list, i)
		}
	}
	r.theirs = nginx.New(r.list, func(namespace string, b model.IngressBackend) string {
		return ingress.ServiceKey(c.Snapshot, namespace, b)
	})
	plan := ingress.Route(c.Snapshot, c.Settings, c.Now)
	for key, b := range plan.Backends {
		r.served[key] = len(b.Endpoints) > 0
	}
	set := upstream.NewSet(upstream.Defaults())
	set.Replace(plan.Backends)
	r.ours = &proxy.Proxy{Upstreams: set}
	r.ours.SetTable(plan.Table)
	return r
}

// Compare returns how both serve a request; nil if there is no difference.
func (r *IngressRouting) Compare(q nginx.Request) *Difference {
	there := r.theirs.Answer(q)
	if there.Status == 0 && !slices.ContainsFunc(there.Backends, func(b string) bool { return r.served[b] }) {
		there.Status = http.StatusServiceUnavailable
	}
	here := r.ours.Preview(requestOf(q))
	if same(there, here) {
		return nil
	}
	d := &Difference{Request: q, Theirs: theirs(there), Ours: ours(here), Ingress: there.Ingress}
	if d.Ingress == (model.Name{}) && here.Path != nil {
		ns, name := here.Path.Ingress()
		d.Ingress = model.Name{Namespace: ns, Name: name}
	}
	return d
}

// requestOf returns a request as the proxy reads it.
func requestOf(q nginx.Request) *message.Request {
	r := &message.Request{Method: []byte(q.Method), Target: []byte(q.Target), Host: []byte(q.Host),
		Version: message.HTTP11, TLS: q.TLS,
		Client: netip.MustParseAddrPort("192.0.2.1:1024"), Local: netip.MustParseAddrPort("192.0.2.2:80")}
	for name, values := range q.Header {
		for _, v := range values {
			r.Fields.Add(name, []byte(v))
		}
	}
	return r
}

// same reports whether both results are equal for a client and for a backend.
func same(there nginx.Answer, here proxy.Preview) bool {
	if there.Status != here.Status {
		return false
	}
	if here.Status != 0 {
		return there.Opaque || there.Location == "" && here.Location == "" ||
			sameURL(there.Location, here.Location, here.Status)
	}
	return there.Allows(here.Backend) && (there.Opaque || decoded(there.Target) == decoded(here.Target)) &&
		slices.Equal(guardsOf(there.Guards...), guardsOf(guards(here.Path)...))
}

// sameURL compares redirect targets. nginx removes the final slash of a redirect to https.
func sameURL(there, here string, status int) bool {
	if status == http.StatusPermanentRedirect {
		there, here = strings.TrimSuffix(there, "/"), strings.TrimSuffix(here, "/")
	}
	if strings.HasPrefix(here, "/") { // relative to the request
		if u, err := url.Parse(there); err == nil {
			there = u.RequestURI()
		}
	}
	return decoded(there) == decoded(here)
}

// decoded returns a target with its escapes decoded: both escape other bytes than they read.
func decoded(s string) string {
	if plain, err := url.PathUnescape(s); err == nil {
		return plain
	}
	return s
}

// guards names the guards of a path.
func guards(p *schema.Path) (out []string) {
	if p == nil || p.Options == nil {
		return nil
	}
	o := p.Options
	if len(o.Sources) > 0 {
		out = append(out, "sources")
	}
	if len(o.Denied) > 0 {
		out = append(out, "denied sources")
	}
	if o.Exchanges > 0 {
		out = append(out, "connections")
	}
	if o.Auth != nil {
		out = append(out, "password")
	}
	if o.AuthURL != nil {
		out = append(out, "auth-url")
	}
	if o.RPS > 0 || o.RPM > 0 {
		out = append(out, "rate")
	}
	return out
}

func guardsOf(list ...string) []string { return slices.Sorted(slices.Values(list)) }

func theirs(a nginx.Answer) string {
	by := ""
	if a.Ingress != (model.Name{}) {
		by = fmt.Sprintf(" by %s of Ingress %s", a.Path, a.Ingress)
	}
	if a.Status != 0 {
		return strings.TrimSpace(fmt.Sprintf("%d %s", a.Status, a.Location)) + by
	}
	return text(strings.Join(a.Backends, " or "), a.Target, guardsOf(a.Guards...)) + by
}

func ours(p proxy.Preview) string {
	by := ""
	if p.Path != nil {
		by = " by " + cmp.Or(patternOf(p.Path), p.Path.Path) + " of " + p.Path.Source
	}
	if p.Status != 0 {
		return strings.TrimSpace(fmt.Sprintf("%d %s", p.Status, p.Location)) + by
	}
	return text(p.Backend, p.Target, guardsOf(guards(p.Path)...)) + by
}

func patternOf(p *schema.Path) string {
	if p.Options == nil {
		return ""
	}
	return p.Options.PathPattern
}

func text(backend, target string, guards []string) string {
	s := backend + " as " + target
	if len(guards) > 0 {
		s += ", guarded by " + strings.Join(guards, ", ")
	}
	return s
}

// Bounds of a list of requests.
const (
	maxRequests    = 100_000
	maxRequestLine = 64 << 10
)

// ReadRequests reads a list: a request per line, "METHOD URL" and fields "Name: value", separated by tabs. Empty
// lines and lines that begin with # are ignored. The error names the line.
func ReadRequests(from io.Reader) (out []nginx.Request, err error) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxRequestLine)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		q, err := parseRequest(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if out = append(out, q); len(out) > maxRequests {
			return nil, fmt.Errorf("line %d: more than %d requests", n, maxRequests)
		}
	}
	return out, lines.Err()
}

func parseRequest(line string) (nginx.Request, error) {
	parts := strings.Split(line, "\t")
	words := strings.Fields(parts[0])
	if len(words) != 2 {
		return nginx.Request{}, fmt.Errorf("%q is not METHOD URL, with tabs before fields", parts[0])
	}
	q := nginx.Request{Method: words[0], Header: http.Header{}}
	rest, tls := strings.CutPrefix(words[1], "https://")
	plain, ok := strings.CutPrefix(rest, "http://")
	if q.TLS = tls; !tls && !ok {
		return q, fmt.Errorf("%q is not a URL of http or https", words[1])
	}
	end := strings.IndexAny(plain, "/?")
	if end < 0 {
		end = len(plain)
	}
	if q.Host, q.Target = plain[:end], plain[end:]; !strings.HasPrefix(q.Target, "/") {
		q.Target = "/" + q.Target
	}
	if q.Host == "" {
		return q, fmt.Errorf("%q has no host", words[1])
	}
	for _, f := range parts[1:] {
		name, value, ok := strings.Cut(f, ":")
		if name = strings.TrimSpace(name); !ok || name == "" {
			return q, fmt.Errorf("%q is not a field like Name: value", f)
		}
		if value = strings.TrimSpace(value); strings.EqualFold(name, "Host") {
			q.Host = value
			continue
		}
		q.Header.Add(name, value)
	}
	return q, nil
}
