package nginx

import (
	"fmt"
	"strings"

	"wayleave.dev/model"
)

// Text returns the server blocks that ingress-nginx would write, as far as they decide where a request goes, for a
// real nginx. listen is the value of the directive listen; pass returns the URL of a backend, empty for one without
// endpoints. Guards are left out, and so are locations whose redirect depends on TLS.
func (c *Config) Text(listen string, pass func(backend string) string) string {
	var b strings.Builder
	for _, s := range c.Servers() {
		name, as := fmt.Sprintf("%q", s.Host), ""
		switch rest, wild := strings.CutPrefix(s.Host, "*."); {
		case s.Host == "":
			name, as = "_", " default_server"
		case wild:
			name = fmt.Sprintf(`"~^(?<subdomain>[\w-]+)\.%s$"`, strings.ReplaceAll(rest, ".", `\.`))
		}
		for _, a := range s.Aliases {
			if c.servers[a] == nil && c.aliases[a] == s {
				name += fmt.Sprintf(" %q", a)
			}
		}
		fmt.Fprintf(&b, "server {\n  listen %s%s;\n  server_name %s;\n", listen, as, name)
		for _, root := range s.AppRoots {
			fmt.Fprintf(&b, "  if ($uri = /) { return 302 $scheme://$http_host%s; }\n", root)
		}
		for _, l := range s.Locations {
			fmt.Fprintf(&b, "  location %s {\n%s  }\n", s.matcher(l), s.body(l, pass))
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func (s *Server) matcher(l *Location) string {
	switch path := strings.ReplaceAll(l.Path, `"`, `\"`); {
	case s.Regex:
		return `~* "^` + path + `"`
	case l.Type == model.PathExact:
		return `= "` + path + `"`
	default:
		return `"` + path + `"`
	}
}

// body returns the directives of a location. The first return applies; the pass after it makes nginx add slashes.
func (s *Server) body(l *Location, pass func(string) string) string {
	var b strings.Builder
	b.WriteString("    set $best_http_host $http_host; set $pass_access_scheme $scheme;\n")
	if l.rules.redirect != "" {
		fmt.Fprintf(&b, "    return %d %s;\n", l.rules.code, l.rules.redirect)
	}
	tls := s.TLS && !l.rules.noTLS || l.rules.forceTLS
	if tls && !strings.HasPrefix(l.Path, challenge) && !isURL(l.rules.target) { // by a script
		b.WriteString("    return 308 https://$host$request_uri;\n")
	}
	if l.rewrites() {
		fmt.Fprintf(&b, "    rewrite \"(?i)%s\" %s break;\n", strings.ReplaceAll(l.Path, `"`, `\"`), l.rules.target)
	}
	fmt.Fprintf(&b, "    proxy_pass %s;\n", pass(l.Backend))
	return b.String()
}
