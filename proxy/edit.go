package proxy

import (
	"bytes"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// dress sets the Host and the fields that the path configures, after all values that depend on the client's own fields
// are known.
func (x *exchange) dress() {
	ready := x.match.Ready
	if ready == nil || x.match.Path.Options.Upstream == nil {
		return
	}
	// All values are derived from the client's request.
	var set message.Fields
	for _, f := range ready.Extras.Request {
		set = append(set, message.Field{Name: f.Name, Value: x.expand(nil, f.Value, forField)})
	}
	host := x.expand(nil, ready.Extras.Host, forField)
	for _, f := range set {
		x.takeOut(string(f.Name))
		x.more = withoutField(x.more, f.Name)
		if len(f.Value) > 0 {
			x.more = append(x.more, f)
		}
	}
	if len(host) > 0 && isAuthority(host) {
		x.opt.host = host
	}
}

// sentHost returns the field Host for endpoints.
func (x *exchange) sentHost() []byte {
	if x.opt.host != nil {
		return x.opt.host
	}
	return x.r.Host
}

func withoutField(list message.Fields, name []byte) message.Fields {
	kept := list[:0]
	for _, f := range list {
		if !sameName(f.Name, name) {
			kept = append(kept, f)
		}
	}
	return kept
}

// isAuthority reports whether text can be a field Host: a name or an address, and a port.
func isAuthority(b []byte) bool {
	for _, c := range b {
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && bytes.IndexByte([]byte("-._:[]"), c) < 0 {
			return false
		}
	}
	return len(b) <= 255
}

// edit changes the head of an endpoint's response as the path configures.
func (x *exchange) edit(o *schema.Options, r *message.Response) {
	if o.Response == nil {
		return
	}
	e := &x.match.Ready.Extras
	for i := range r.Fields {
		f := &r.Fields[i]
		switch {
		case message.EqualFold(f.Name, "Set-Cookie"):
			f.Value = x.recook(f.Value, e.Domain, e.CookiePath)
		case message.EqualFold(f.Name, "Location"):
			f.Value = x.replace(f.Value, e.Location)
		case message.EqualFold(f.Name, "Refresh"):
			before, url, ok := bytes.Cut(f.Value, []byte("url="))
			if ok {
				f.Value = append(append(bytes.Clone(before), "url="...), x.replace(url, e.Location)...)
			}
		}
	}
}

// setFields sets the fields that the path configures in a response of any origin.
func (x *exchange) setFields(f message.Fields) message.Fields {
	if x.match.Ready == nil {
		return f
	}
	for _, s := range x.match.Ready.Extras.Response {
		v := x.expand(nil, s.Value, forField)
		f.Del(string(s.Name))
		if len(v) > 0 {
			f = append(f, message.Field{Name: s.Name, Value: v})
		}
	}
	return f
}

// maxReplaced bounds how many values of one response are compared with expressions, and the length of a result.
const maxReplaced = 8 << 10

// replace changes a value by the first rule that matches.
func (x *exchange) replace(v []byte, rules []table.ReadyReplace) []byte {
	if len(rules) == 0 {
		return v
	}
	if x.opt.compared += len(v); x.opt.compared > maxReplaced {
		return v
	}
	for _, r := range rules {
		if r.Match == nil {
			if bytes.HasPrefix(v, []byte(r.Begin)) {
				return bounded(append(x.expand(nil, r.To, forPath), v[len(r.Begin):]...), v)
			}
			continue
		}
		if at := r.Match.FindSubmatchIndex(v); at != nil {
			return bounded(x.withGroups(v, at, r.To), v)
		}
	}
	return v
}

// withGroups replaces the match of an expression by the text of the rule.
func (x *exchange) withGroups(v []byte, at []int, to table.Template) []byte {
	out := bytes.Clone(v[:at[0]])
	for _, p := range to {
		if p.Kind != table.Group {
			out = x.expand(out, table.Template{p}, forPath)
		} else if i := 2 * p.Group; i+1 < len(at) && at[i] >= 0 {
			out = append(out, v[at[i]:at[i+1]]...)
		}
	}
	return append(out, v[at[1]:]...)
}

func bounded(v, otherwise []byte) []byte {
	if len(v) > maxReplaced {
		return otherwise
	}
	return v
}

// recook changes the attributes Domain and Path of a cookie.
func (x *exchange) recook(v []byte, domain, path []table.ReadyReplace) []byte {
	if len(domain)+len(path) == 0 || len(v) > maxReplaced {
		return v
	}
	parts := bytes.Split(v, []byte(";"))
	for i := range parts {
		name, value, ok := bytes.Cut(parts[i], []byte("="))
		if i == 0 || !ok {
			continue
		}
		now := value
		switch plain := bytes.TrimSpace(value); {
		case message.EqualFold(bytes.TrimSpace(name), "Domain"):
			now = x.redomain(plain, domain)
		case message.EqualFold(bytes.TrimSpace(name), "Path"):
			now = x.replace(plain, path)
		default:
			continue
		}
		if bytes.IndexByte(now, ';') >= 0 {
			now = value // a client could add an attribute
		}
		parts[i] = append(append(bytes.Clone(name), '='), now...)
	}
	return bounded(bytes.Join(parts, []byte(";")), v)
}

// redomain is replace for the attribute Domain: case and a leading dot are ignored, and text must match completely.
func (x *exchange) redomain(v []byte, rules []table.ReadyReplace) []byte {
	plain := bytes.ToLower(bytes.TrimPrefix(v, []byte(".")))
	if x.opt.compared += len(v); x.opt.compared > maxReplaced {
		return v
	}
	for i, r := range rules {
		switch {
		case r.Match != nil:
			if r.Match.Match(plain) {
				return x.replace(plain, rules[i:i+1])
			}
		case bytes.EqualFold(plain, bytes.TrimPrefix([]byte(r.Begin), []byte("."))):
			return x.expand(nil, r.To, forPath)
		}
	}
	return v
}
