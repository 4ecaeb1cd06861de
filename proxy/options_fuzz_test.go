package proxy

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// Credentials are read as Go's net/http reads them, or not at all.
func FuzzCredentials(f *testing.F) {
	for _, s := range []string{"Basic YTpi", "basic  YTpi ", "Basic", "Basic YTpi=", "Bearer YTpi", "Basic OnA=",
		"Basic YTpiOmM="} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		name, password, ok := credentials(b)
		if !ok {
			return
		}
		_, code, _ := strings.Cut(string(b), " ")
		r := &http.Request{Header: http.Header{"Authorization": {"Basic " + strings.Trim(code, " ")}}}
		if n, p, ok := r.BasicAuth(); !ok || n != string(name) || p != string(password) {
			t.Fatalf("%q: %q %q; net/http: %v %q %q", b, name, password, ok, n, p)
		}
		if _, err := base64.StdEncoding.DecodeString(strings.Trim(code, " ")); err != nil {
			t.Fatal(err)
		}
	})
}

// A cookie that Go's net/http finds is found, with the same value.
func FuzzCookie(f *testing.F) {
	for _, s := range []string{"a=b", "x=y; a=b", "a=\"b\"", "a", "a=", ";;a=b;a=c", " a=b ", "A=b", "a==b", "a=b;"} {
		f.Add([]byte(s), "a")
	}
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		got := cookie(message.Fields{{Name: []byte("Cookie"), Value: b}}, name)
		if len(got) > len(b) {
			t.Fatal("longer than the field")
		}
		r := &http.Request{Header: http.Header{"Cookie": {string(b)}}}
		if want, err := r.Cookie(name); err == nil && name != "" && want.Value != "" && string(got) != want.Value &&
			strings.Count(string(b), name) == 1 {
			t.Fatalf("%q %q: %q; net/http: %q", b, name, got, want.Value)
		}
	})
}

// Whatever a client writes to X-Forwarded-For, a peer that is not trusted is itself, and a
// trusted one's client is one that the last trusted one named.
func FuzzForwardedFor(f *testing.F) {
	for _, s := range []string{"1.2.3.4", "1.2.3.4, 10.0.0.1", "[::1]:80", "::ffff:1.2.3.4", "fe80::1%eth0", ",", "x",
		"[", "]", "[]", "1.2.3.4:99999"} {
		f.Add([]byte(s), true)
	}
	trusted := netip.MustParsePrefix("10.0.0.0/8")
	f.Fuzz(func(t *testing.T, b []byte, believed bool) {
		peer := netip.MustParseAddr("192.0.2.1")
		if believed {
			peer = netip.MustParseAddr("10.0.0.9")
		}
		x := &exchange{p: &Proxy{Trusted: []netip.Prefix{trusted}},
			r: &message.Request{Client: netip.AddrPortFrom(peer, 1), Fields: message.Fields{{Name: nameFor, Value: b}}}}
		who := x.who()
		switch {
		case !who.IsValid() || who.Zone() != "" || who.Is4In6():
			t.Fatalf("%q: %v", b, who)
		case !believed && who != peer:
			t.Fatalf("%q: a stranger is %v", b, who)
		}
		// What is put in front changes nothing where the last is not trusted.
		if believed && !trusted.Contains(who) {
			y := &exchange{p: x.p, r: &message.Request{Client: x.r.Client,
				Fields: message.Fields{{Name: nameFor, Value: append([]byte("6.6.6.6, "), b...)}}}}
			if y.who() != who {
				t.Fatalf("%q: %v with something in front, %v without", b, y.who(), who)
			}
		}
	})
}

// A rewritten target, and a URL made of a request, is one that no reader takes for more
// than one line.
func FuzzExpand(f *testing.F) {
	f.Add("/$1?x=$2", []byte("/a/b%0d%0ac"), []byte("v"))
	f.Add("https://$host/$http_x?rd=$escaped_request_uri", []byte("/?a=b#"), []byte("\xff <>"))
	f.Add("${uri}$arg_a$cookie_b$args$remote_addr$scheme$request_method$http_host", []byte("/?a=%"), []byte("b=\x80"))
	f.Add("${server_name}$binary_remote_addr$is_args$request$request_id$remote_user$namespace$content_length",
		[]byte("/a?b\n"), []byte("x\r\n"))
	f.Fuzz(func(t *testing.T, text string, target, value []byte) {
		for i := range len(text) {
			if text[i] <= ' ' || text[i] >= 0x7f {
				return // the cluster's own; the plan refuses it
			}
		}
		tmpl, err := table.ParseTemplate(text)
		if err != nil || strings.Contains(text, "#") {
			return
		}
		path, _ := table.Clean(bytes.SplitN(target, []byte("?"), 2)[0], nil)
		x := &exchange{p: &Proxy{}, r: &message.Request{Method: []byte("GET"), Target: target, Host: value,
			Client: netip.MustParseAddrPort("192.0.2.1:1"), Fields: message.Fields{{Name: []byte("X"), Value: value},
				{Name: []byte("Cookie"), Value: value}}}}
		x.opt.target, x.opt.path = target, path
		x.match.Path, x.match.Groups = &schema.Path{}, [][]byte{path, path, value}
		got := x.expand(nil, tmpl, forPath)
		for _, c := range got {
			if c <= ' ' || c >= 0x7f || c == '#' && !strings.Contains(text, "#") {
				t.Fatalf("%q of %q %q: %q", text, target, value, got)
			}
		}
		if e := x.expand(nil, table.Template{{Kind: table.EscapedRequestURI}}, forPath); true {
			if back, err := url.QueryUnescape(string(e)); err != nil || back != string(target) {
				t.Fatalf("%q: %q", target, e)
			}
		}
	})
}

// An origin is allowed only when it is one label in place of the star.
func FuzzOrigins(f *testing.F) {
	for _, s := range []string{"https://a.shop.example", "https://.shop.example", "https://shop.example",
		"https://a.b.shop.example", "HTTPS://A.SHOP.EXAMPLE", "https://x/.shop.example"} {
		f.Add([]byte(s))
	}
	o := table.Prepare(&schema.Path{
		Options: &schema.Options{CORS: &schema.CORS{Origins: []string{"https://*.shop.example"}}}}).Origins
	f.Fuzz(func(t *testing.T, b []byte) {
		if !o.Allows(b) {
			return
		}
		u, err := url.Parse(strings.ToLower(string(b)))
		if err != nil || u.Scheme != "https" || u.Path != "" || strings.Count(u.Host, ".") != 2 ||
			!strings.HasSuffix(u.Host, ".shop.example") {
			t.Fatalf("%q is allowed", b)
		}
	})
}
