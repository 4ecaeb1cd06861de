package ingress

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
)

// Translation is a replacement for a snippet of nginx.
type Translation struct {
	// Annotations are full names and values, in order of names.
	Annotations []KeyValue
	// Left are the directives without a replacement.
	Left []string
}

// KeyValue is an annotation.
type KeyValue struct{ Key, Value string }

// snippets are the annotations that Translate reads.
var snippets = []string{"configuration-snippet", "server-snippet", "auth-snippet"}

// Snippets returns the snippets of an Ingress, by the full names of their annotations.
func Snippets(i *model.Ingress) map[string]string {
	out := map[string]string{}
	for _, s := range snippets {
		if v := i.Annotations[nginxPrefix+s]; strings.TrimSpace(v) != "" {
			out[nginxPrefix+s] = v
		}
	}
	return out
}

// Translate finds annotations that replace the directives of a snippet; key is the full name of its annotation. A
// replacement has the same effect for all requests of the Ingress's paths.
func Translate(key, text string) Translation {
	t := translator{auth: strings.HasSuffix(key, "/auth-snippet"), values: map[string]string{}}
	list, ok := statements(text)
	if !ok {
		return Translation{Left: []string{"the complete text, which cannot be parsed"}}
	}
	for _, s := range list {
		if s.block || !t.directive(s.words) {
			t.left = append(t.left, s.String())
		}
	}
	t.finishSources()
	out := Translation{Left: t.left}
	for _, k := range slices.Sorted(maps.Keys(t.values)) {
		out.Annotations = append(out.Annotations, KeyValue{k, t.values[k]})
	}
	return out
}

// statement is a directive outside of all blocks; block says that a block follows it.
type statement struct {
	words []string
	block bool
}

// String shortens long directives.
func (s statement) String() string {
	text := strings.Join(s.words, " ")
	if len(text) > 80 {
		text = text[:80] + "…"
	}
	if s.block {
		text += " { … }"
	}
	return text
}

func statements(text string) (out []statement, ok bool) {
	l := lexer{rest: text}
	depth := 0
	var words []string
	for {
		word, kind, err := l.next()
		switch {
		case err != nil:
			return nil, false
		case kind == endOfText:
			return out, depth == 0 && len(words) == 0
		case kind == open:
			if depth++; depth == 1 {
				out = append(out, statement{words, true})
			}
			words = nil
		case kind == closing:
			if depth--; depth < 0 || len(words) > 0 {
				return nil, false
			}
		case kind == semicolon:
			if depth == 0 && len(words) > 0 {
				out = append(out, statement{words, false})
			}
			words = nil
		default:
			words = append(words, word)
		}
	}
}

// translator collects annotations.
type translator struct {
	auth           bool
	values         map[string]string
	left           []string
	allowed, other []string // of allow, and of deny
	last           string   // of allow and deny: "all" ends the list
	mixed          bool
}

// set records a value, once.
func (t *translator) set(name, value string) bool {
	key := nginxPrefix + name
	if strings.Contains(name, "/") {
		key = name
	}
	if old, there := t.values[key]; there && old != value {
		return false
	}
	t.values[key] = value
	return true
}

// line adds a line to an annotation of fields, if the field is allowed.
func (t *translator) line(name, field, value string) bool {
	line := field + ":"
	if value != "" {
		line += " " + value
	}
	if headerLines(func(*parser, schema.Field) {})(&parser{}, line) != nil {
		return false
	}
	key := ownPrefix + name
	if t.values[key] != "" {
		line = t.values[key] + "\n" + line
	}
	t.values[key] = line
	return true
}

// same are directives with the same value as an annotation.
var same = map[string]string{
	"client_max_body_size": "proxy-body-size", "proxy_cookie_domain": "proxy-cookie-domain",
	"proxy_cookie_path": "proxy-cookie-path", "satisfy": "satisfy",
	"proxy_next_upstream": "proxy-next-upstream", "proxy_next_upstream_tries": "proxy-next-upstream-tries",
	"proxy_buffering": "proxy-buffering", "proxy_request_buffering": "proxy-request-buffering",
	"proxy_buffer_size": "proxy-buffer-size", "client_body_buffer_size": "client-body-buffer-size",
	"proxy_ssl_name": "proxy-ssl-name", "proxy_ssl_server_name": "proxy-ssl-server-name",
	"ssl_ciphers": "ssl-ciphers", "proxy_http_version": "proxy-http-version",
}

// inSeconds are times, which the annotations have without a unit.
var inSeconds = map[string]string{"proxy_connect_timeout": "proxy-connect-timeout",
	"proxy_read_timeout": "proxy-read-timeout", "proxy_send_timeout": "proxy-send-timeout",
	"proxy_next_upstream_timeout": "proxy-next-upstream-timeout"}

func (t *translator) directive(w []string) bool {
	name, args := strings.ToLower(w[0]), w[1:]
	if t.auth && name != "proxy_set_header" {
		return false
	}
	if to, ok := same[name]; ok && len(args) > 0 {
		return t.checked(to, strings.Join(args, " "))
	}
	if to, ok := inSeconds[name]; ok && len(args) == 1 {
		d, err := nginxTime(args[0])
		return err == nil && d.Seconds() >= 1 && t.checked(to, strconv.Itoa(int(d.Seconds())))
	}
	switch name {
	case "more_set_headers", "more_clear_headers", "more_set_input_headers", "more_clear_input_headers":
		return t.more(name, args)
	case "add_header":
		return (len(args) == 2 || len(args) == 3 && args[2] == "always") && !strings.EqualFold(args[0], "Set-Cookie") &&
			t.line("response-headers", args[0], args[1])
	case "proxy_hide_header":
		return len(args) == 1 && t.line("response-headers", args[0], "")
	case "proxy_set_header":
		return len(args) == 2 && t.requestField(args[0], args[1])
	case "allow", "deny":
		return len(args) == 1 && t.source(name, args[0])
	case "return":
		return t.goes(args)
	case "rewrite":
		return t.rewrite(args)
	case "proxy_redirect":
		return len(args) == 2 && t.checked("proxy-redirect-from", args[0]) && t.checked("proxy-redirect-to", args[1])
	}
	return false
}

// checked records a value that the annotation's own parser accepts.
func (t *translator) checked(name, value string) bool {
	for _, a := range annotations() {
		if a.name == name {
			p := &parser{in: &model.Ingress{}, values: map[string]string{}}
			return a.built() && a.read(p, value) == nil && t.set(name, value)
		}
	}
	return false
}

// more translates directives of the module headers-more without options.
func (t *translator) more(name string, args []string) bool {
	to := "response-headers"
	if strings.Contains(name, "input") {
		to = "request-headers"
	}
	for _, a := range args {
		field, value, ok := strings.Cut(a, ":")
		if strings.HasPrefix(a, "-") || strings.Contains(field, "*") {
			return false
		}
		if strings.Contains(name, "clear") {
			value = ""
		} else if !ok {
			return false
		}
		if !t.line(to, strings.TrimSpace(field), strings.TrimSpace(value)) {
			return false
		}
	}
	return len(args) > 0
}

func (t *translator) requestField(name, value string) bool {
	switch strings.ToLower(name) {
	case "host":
		return !t.auth && t.checked("upstream-vhost", value)
	case "x-forwarded-prefix":
		if !t.auth {
			return t.checked("x-forwarded-prefix", value)
		}
	case "upgrade", "connection": // protocol upgrades are forwarded
		return !t.auth && (value == "$http_upgrade" || strings.EqualFold(value, "upgrade") ||
			value == "$connection_upgrade")
	}
	if t.auth {
		return t.line("auth-request-headers", name, value)
	}
	return t.line("request-headers", name, value)
}

// source records allow and deny. nginx applies the first match; the annotations apply denied networks first, then
// allowed ones, and deny all others.
func (t *translator) source(directive, who string) bool {
	if t.last == "all" {
		return true // it has no effect
	}
	if who == "all" {
		t.last = "all"
		if directive == "allow" {
			t.mixed = t.mixed || len(t.allowed) > 0 // they were allowed already
			t.allowed = nil
		} else if len(t.allowed) == 0 {
			t.mixed = true // everything is denied
		}
		return true
	}
	if _, err := parseNetwork(who); err != nil {
		return false
	}
	switch {
	case directive == "allow":
		t.allowed = append(t.allowed, who)
	case len(t.allowed) > 0:
		t.mixed = true
	default:
		t.other = append(t.other, who)
	}
	return true
}

func (t *translator) finishSources() {
	if t.mixed || len(t.allowed) > 0 && t.last != "all" {
		t.left = append(t.left, "allow and deny in this order")
		return
	}
	if len(t.allowed) > 0 {
		t.set("allowlist-source-range", strings.Join(t.allowed, ","))
	}
	if len(t.other) > 0 {
		t.set("denylist-source-range", strings.Join(t.other, ","))
	}
}

// goes translates return with a URL.
func (t *translator) goes(args []string) bool {
	if len(args) == 1 {
		args = []string{"302", args[0]}
	}
	if len(args) != 2 {
		return false
	}
	switch args[0] {
	case "301":
		return t.checked("permanent-redirect", args[1])
	case "308":
		return t.checked("permanent-redirect", args[1]) && t.checked("permanent-redirect-code", "308")
	case "302":
		return t.checked("temporal-redirect", args[1])
	case "303", "307":
		return t.checked("temporal-redirect", args[1]) && t.checked("temporal-redirect-code", args[0])
	}
	return false
}

// rewrite translates a rewrite of every path to another host.
func (t *translator) rewrite(args []string) bool {
	if len(args) != 3 || !slices.Contains([]string{"^/(.*)$", "^/(.*)", "^(.*)$", "^(.*)", "^/?(.*)$", "^"}, args[0]) {
		return false
	}
	to := args[1]
	switch {
	case strings.HasSuffix(to, "/$1") && strings.HasPrefix(args[0], "^/"):
		to = strings.TrimSuffix(to, "/$1") + "$request_uri"
	case strings.HasSuffix(to, "$1") && strings.HasPrefix(args[0], "^(") && !strings.HasSuffix(to, "/$1"):
		to = strings.TrimSuffix(to, "$1") + "$request_uri"
	case strings.HasSuffix(to, "$request_uri?"):
		to = strings.TrimSuffix(to, "?")
	default:
		return false
	}
	if !strings.HasPrefix(to, "http://") && !strings.HasPrefix(to, "https://") && !strings.HasPrefix(to, "$scheme://") {
		return false
	}
	switch args[2] {
	case "permanent":
		return t.checked("permanent-redirect", to)
	case "redirect":
		return t.checked("temporal-redirect", to)
	}
	return false
}

// String reads "NAME: VALUE".
func (k KeyValue) String() string { return fmt.Sprintf("%s: %s", k.Key, k.Value) }
