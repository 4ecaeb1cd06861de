package explain

import (
	"fmt"
	"net/http"
	"strings"

	"wayleave.dev/ingress/nginx"
	"wayleave.dev/model"
)

// Bounds of generated requests: requests in total, and reported differences per Ingress.
const (
	maxProbes = 20_000
	maxNamed  = 8
)

// probes returns requests that show how the paths of an Ingress are matched: each path, and paths that begin with it,
// in its own case and in others.
func probes(i *model.Ingress) (out []nginx.Request) {
	for _, r := range i.Rules {
		host := strings.Replace(r.Host, "*", "probe", 1)
		if host == "" {
			host = "probe.invalid"
		}
		for _, p := range r.Paths {
			text := sample(p.Path)
			for _, path := range []string{text, text + "x", strings.TrimSuffix(text, "/") + "/x", strings.ToUpper(text),
				text + "?a=b"} {
				out = append(out, nginx.Request{Method: http.MethodGet, Host: host, Target: path, TLS: true})
			}
			out = append(out, nginx.Request{Method: http.MethodGet, Host: host, Target: text})
		}
	}
	return out
}

// sample returns a path that a regular expression may match: its literals, and a placeholder for groups.
func sample(path string) string {
	s := strings.NewReplacer("(/|$)", "/", "(.*)", "s", "(.+)", "s", ".*", "s", ".+", "s", "()", "").Replace(path)
	if i := strings.IndexAny(s, `()[]{}*+?|^$\`); i >= 0 {
		s = s[:i]
	}
	if !strings.HasPrefix(s, "/") {
		s = "/" + s
	}
	return s
}

// differs returns, by Ingress, the requests that ingress-nginx serves differently.
func (c IngressCheck) differs() map[model.Name][]string {
	routing, out, asked := c.Routing(), map[model.Name][]string{}, 0
	seen := map[string]bool{}
	for _, i := range routing.list {
		for _, q := range probes(i) {
			key := fmt.Sprint(q.TLS, q.Host, q.Target)
			if seen[key] || asked == maxProbes {
				continue
			}
			seen[key] = true
			asked++
			if d := routing.Compare(q); d != nil {
				out[i.Name] = append(out[i.Name], d.String())
			}
		}
	}
	for name, list := range out {
		if more := len(list) - maxNamed; more > 0 {
			out[name] = append(list[:maxNamed:maxNamed], fmt.Sprintf("and %d more requests", more))
		}
	}
	return out
}
