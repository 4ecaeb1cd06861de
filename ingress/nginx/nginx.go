// Package nginx models what ingress-nginx does with Ingresses: the servers and locations that it writes, and where
// they lead a request. It is based on ingress-nginx's documentation and the meaning of its configuration in nginx,
// and is independent of Wayleave's planning and routing, so that both can be compared.
//
// Invariants:
//   - It reads annotations that change where a request goes. Guards are named, but not applied.
//   - Results are immutable.
package nginx

import (
	"cmp"
	"slices"
	"strings"

	"github.com/dlclark/regexp2"

	"wayleave.dev/model"
)

// Server is a server block: a host name, its aliases, and its locations in the order of the file.
type Server struct {
	// Host is empty for hosts without their own server.
	Host      string
	Aliases   []string
	Locations []*Location
	// Regex says that all locations are case-insensitive regular expressions.
	Regex bool
	// TLS says that the server has a certificate, its own or the default one by an entry of spec.tls.
	TLS bool
	// AppRoots are the redirect targets of requests for /; the first one applies.
	AppRoots []string
}

// Location is a location block.
type Location struct {
	Path string
	Type model.PathType
	// Backend is the Service and port as "namespace/service:port"; empty for the default backend.
	Backend string
	// Ingress is nil for the root of a server without one.
	Ingress *model.Ingress
	// Canaries are the Ingresses whose backend gets some of the requests.
	Canaries []Canary

	rules rules
	root  bool // it was made without a path of an Ingress
	// re is the expression of a server with Regex; nil if it is invalid.
	re *regexp2.Regexp
}

// Canary is a backend beside a location's own.
type Canary struct {
	Backend string
	rules   rules
}

// Config is all servers.
type Config struct {
	servers map[string]*Server
	// aliases leads to the server of a name.
	aliases map[string]*Server
}

// Servers are the servers in order of their names.
func (c *Config) Servers() []*Server {
	var out []*Server
	for _, s := range c.servers {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *Server) int { return strings.Compare(a.Host, b.Host) })
	return out
}

// Resolve returns the key of a Service's port, "namespace/service:port".
type Resolve func(namespace string, b model.IngressBackend) string

// New returns the servers that ingress-nginx would write for these Ingresses.
func New(list []*model.Ingress, resolve Resolve) *Config {
	c := &Config{servers: map[string]*Server{}, aliases: map[string]*Server{}}
	c.servers[""] = &Server{Locations: []*Location{{Path: "/", Type: model.PathPrefix, root: true}}}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b *model.Ingress) int { // ties: the greater name is first
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(b.Name.String(), a.Name.String()))
	})
	read := map[*model.Ingress]rules{}
	list = slices.DeleteFunc(list, func(i *model.Ingress) bool {
		r, ok := parse(i)
		read[i] = r
		return !ok
	})
	for _, i := range list {
		if r := read[i]; !r.canary {
			c.hosts(i, r, resolve)
		}
	}
	for _, i := range list {
		if r := read[i]; !r.canary {
			c.paths(i, r, resolve)
		}
	}
	for _, i := range list {
		if r := read[i]; r.canary {
			c.canary(i, r, resolve)
		}
	}
	for _, s := range c.servers {
		s.finish()
		for _, a := range s.Aliases {
			if c.servers[a] == nil && c.aliases[a] == nil {
				c.aliases[a] = s
			}
		}
	}
	return c
}

// hosts adds the servers of an Ingress. The first Ingress of a host has its root, with its annotations, until a path
// takes it.
func (c *Config) hosts(i *model.Ingress, r rules, resolve Resolve) {
	backend := ""
	if i.Default != nil {
		backend = resolve(i.Name.Namespace, *i.Default)
		if root := c.servers[""].Locations[0]; len(i.Rules) == 0 && root.root {
			alone := r
			alone.target, alone.redirect, alone.appRoot, alone.regex, alone.noTLS, alone.forceTLS = "", "", "",
				false, false, false
			root.Backend, root.root, root.Ingress, root.rules = backend, false, i, alone
		}
	}
	for _, rule := range i.Rules {
		s := c.servers[rule.Host]
		if s == nil {
			s = &Server{Host: rule.Host, Locations: []*Location{{Path: "/", Type: model.PathPrefix, Backend: backend,
				Ingress: i, rules: r, root: true}}}
			c.servers[rule.Host] = s
		}
		if len(s.Aliases) == 0 {
			s.Aliases = r.aliases
		}
		s.TLS = s.TLS || len(i.TLS) > 0 && rule.Host != "" // hosts without their own server have no certificate
	}
}

// paths adds the locations of an Ingress that no older one has.
func (c *Config) paths(i *model.Ingress, r rules, resolve Resolve) {
	for _, rule := range i.Rules {
		s := c.servers[rule.Host]
		for _, p := range rule.Paths {
			loc := &Location{Path: cmp.Or(p.Path, "/"), Type: typeOf(p), Backend: resolve(i.Name.Namespace, p.Backend),
				Ingress: i, rules: r}
			at := slices.IndexFunc(s.Locations, func(l *Location) bool { return l.Path == loc.Path })
			switch {
			case at < 0 || s.Locations[at].Type != loc.Type: // the same text with several types
				s.Locations = append(s.Locations, loc)
			case s.Locations[at].root:
				s.Locations[at] = loc
			}
		}
	}
}

// typeOf returns the type of a path: ImplementationSpecific is Prefix (internal/k8s/main.go).
func typeOf(p model.IngressPath) model.PathType {
	if p.Type == model.PathExact {
		return model.PathExact
	}
	return model.PathPrefix
}

// canary adds a backend to the locations of the same path and type.
func (c *Config) canary(i *model.Ingress, r rules, resolve Resolve) {
	for _, rule := range i.Rules {
		s := c.servers[rule.Host]
		if s == nil {
			continue
		}
		for _, p := range rule.Paths {
			key := resolve(i.Name.Namespace, p.Backend)
			for _, l := range s.Locations {
				if l.Path == p.Path && l.Type == typeOf(p) && l.Backend != "" && l.Backend != key &&
					len(l.Canaries) == 0 {
					l.Canaries = append(l.Canaries, Canary{key, r})
				}
			}
		}
	}
}

// finish orders the locations (longer text first, ties by greater text), and gives a Prefix its second location.
func (s *Server) finish() {
	slices.SortStableFunc(s.Locations, func(a, b *Location) int {
		return cmp.Or(len(b.Path)-len(a.Path), strings.Compare(b.Path, a.Path))
	})
	exact := map[string]bool{}
	for _, l := range s.Locations {
		if l.Type == model.PathExact {
			exact[l.Path] = true
		}
	}
	var out []*Location
	for _, l := range s.Locations {
		if l.rules.appRoot != "" {
			s.AppRoots = append(s.AppRoots, l.rules.appRoot)
		}
		if l.Path == "/" || l.Type != model.PathPrefix || l.rewrites() || l.rules.regex {
			out = append(out, l)
			continue
		}
		below := *l
		below.Path = strings.TrimSuffix(l.Path, "/") + "/"
		out = append(out, &below)
		if !exact[l.Path] {
			alone := *l
			alone.Type = model.PathExact
			out = append(out, &alone)
		}
	}
	s.Locations = out
	if s.Regex = slices.ContainsFunc(out, func(l *Location) bool { return l.rewrites() || l.rules.regex }); s.Regex {
		for _, l := range out {
			l.re, _ = compile("^"+l.Path, true) // nginx would not start with an invalid one
		}
	}
}

// rewrites reports whether rewrite-target changes requests of the location.
func (l *Location) rewrites() bool { return l.rules.target != "" && l.rules.target != l.Path }

// Lookup returns the server for a host name in lower case, without port.
func (c *Config) Lookup(name string) *Server {
	if s := c.servers[name]; s != nil && name != "" {
		return s
	}
	if s := c.aliases[name]; s != nil {
		return s
	}
	for rest := name; ; { // an alias with a star matches any number of labels
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			break
		}
		if s := c.aliases["*."+parent]; s != nil {
			return s
		}
		rest = parent
	}
	if label, parent, ok := strings.Cut(name, "."); ok && isWord(label) {
		if s := c.servers["*."+parent]; s != nil {
			return s
		}
	}
	return c.servers[""]
}

// isWord reports whether a label matches that of a wildcard host: [\w-]+.
func isWord(s string) bool {
	return s != "" && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}
