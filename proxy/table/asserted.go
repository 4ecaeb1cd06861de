package table

import (
	"slices"
	"strings"

	"wayleave.dev/proxy/schema"
)

// Asserted returns the fields that only authentication servers may set for the endpoints of a backend's Service, on any
// port, because some path to it lists them in auth-response-headers: a client must not set them through another path
// without authentication. Nil for none.
func (t *Table) Asserted(backend string) []string {
	if t == nil || len(t.asserted) == 0 {
		return nil
	}
	return t.asserted[serviceOf(backend)]
}

// serviceOf returns the Service of a backend's key: its ports and its virtual address may lead to the same servers.
func serviceOf(backend string) string {
	service, _, _ := strings.Cut(backend, ":")
	return service
}

// AboutCertificate reports whether a field, by its name in Asserted, describes a client's certificate.
func AboutCertificate(name string) bool {
	return slices.ContainsFunc(certificateFields, func(f string) bool { return strings.EqualFold(f, name) })
}

// CertificateFields are all fields that describe a client's certificate, in lower case.
func CertificateFields() []string { return slices.Clone(certificateFields) }

// assertions returns those of a host's paths, by backend, and the fields that describe a client's certificate.
// Credentials are left out: endpoints verify them, and clients send them on paths without authentication.
func assertions(h *schema.Host) map[string][]string {
	var out map[string][]string
	add := func(p *schema.Path) {
		if p == nil {
			return
		}
		backends := []string{p.Backend}
		var names []string
		if o := p.Options; o != nil {
			for _, c := range o.Canary {
				backends = append(backends, c.Backend)
			}
			if o.Errors != nil {
				backends = append(backends, o.Errors.Backend)
			}
			if o.AuthURL != nil {
				names = o.AuthURL.Headers
			}
		}
		if h.ClientCert != nil {
			names = slices.Concat(names, certificateFields)
		}
		for _, name := range names {
			if strings.EqualFold(name, "authorization") || strings.EqualFold(name, "cookie") {
				continue
			}
			if out == nil {
				out = map[string][]string{}
			}
			for _, b := range backends {
				out[serviceOf(b)] = append(out[serviceOf(b)], name)
			}
		}
	}
	for i := range h.Paths {
		add(&h.Paths[i])
	}
	add(h.Default)
	return out
}

// assert merges the assertions of all hosts.
func (t *Table) assert(r *Routes) {
	for backend, names := range r.asserted {
		if t.asserted == nil {
			t.asserted = map[string][]string{}
		}
		for _, n := range names {
			if !slices.ContainsFunc(t.asserted[backend], func(o string) bool { return strings.EqualFold(o, n) }) {
				t.asserted[backend] = append(slices.Clip(t.asserted[backend]), n)
			}
		}
	}
}

// AllAsserted returns all asserted names, in lower case.
func (t *Table) AllAsserted() []string {
	if t == nil {
		return nil
	}
	return t.said
}

func (t *Table) allAsserted() (out []string) {
	seen := map[string]bool{}
	for _, names := range t.asserted {
		for _, n := range names {
			if n = strings.ToLower(n); !seen[n] {
				seen[n] = true
				out = append(out, n)
			}
		}
	}
	slices.Sort(out)
	return out
}
