package proxy

import (
	"net/url"
	"regexp"
	"strings"
	"testing"

	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// Each variable has the value that nginx, or ingress-nginx, gives it.
func TestVariables(t *testing.T) {
	r := newRig(t, nil)
	values := map[string]string{
		"binary_remote_addr": "\x7f\x00\x00\x01", "remote_addr": `127\.0\.0\.1`, "the_real_ip": `127\.0\.0\.1`,
		"realip_remote_addr": `127\.0\.0\.1`, "remote_port": `[1-9][0-9]+`, "remote_user": "ann",
		"server_name": `h\.test`, "server_addr": `127\.0\.0\.1`, "server_port": "8080", "pass_server_port": "8080",
		"pass_port": "8080", "server_protocol": `HTTP/1\.1`,
		"host": `h\.test`, "http_host": `H\.test:8080`, "best_http_host": `H\.test:8080`, "scheme": "http",
		"pass_access_scheme": "http", "https": "",
		"is_args": `\?`, "args": "a=b&c=%20", "query_string": "a=b&c=%20", "request_uri": `/x/y\?a=b&c=%20`,
		"escaped_request_uri": `/x/y\?a=b&c=%20`, "uri": "/x/y", "document_uri": "/x/y",
		"request_method": "GET", "request": `GET /x/y\?a=b&c=(%20| ) HTTP/1\.1`, "request_id": "[0-9a-f]{32}",
		"req_id": "mine", "content_length": "", "msec": `1[0-9]{9}\.[0-9]{3}`,
		"time_iso8601": `20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}[-+][0-9]{2}:[0-9]{2}`,
		"time_local":   `[0-9]{2}/[A-Z][a-z]{2}/20[0-9]{2}:[0-9:]{8} [-+][0-9]{4}`, "content_type": "text/plain",
		"namespace": "shop", "ingress_name": "main", "service_name": "web", "service_port": "80",
		"proxy_upstream_name": "shop-web-80", "location_path": "/x",
		"http_user_agent": "tester", "http_X_Id": "7", "cookie_c": "d", "arg_a": "b", "1": "y", "HOST": `h\.test`,
		"{host}": `h\.test`, "arg_none": "", "http_none": "",
	}
	var known []string
	for _, name := range table.Variables() {
		if _, ok := values[name]; !ok {
			t.Errorf("$%s has no case", name)
		}
	}
	for name := range values {
		known = append(known, name)
	}
	for _, name := range known {
		p := schema.Path{Kind: schema.Prefix, Path: "/x", Backend: "shop/web:80",
			Source:  "Ingress shop/main spec.rules[0].http.paths[0]",
			Options: &schema.Options{PathPattern: "/x/(.*)", Redirect: "https://to.test/?v=$" + name}}
		r.hosts(&schema.Host{Name: "h.test", Paths: []schema.Path{p}})
		resp, _ := r.ask("GET /x/y?a=b&c=%20\nHost: H.test:8080\nUser-Agent: tester\nX-Id: 7\nCookie: " +
			"c=d\nContent-Type: text/plain\nX-Request-ID: mine\nAuthorization: Basic YW5uOmI=")
		got, ok := strings.CutPrefix(resp.Header.Get("Location"), "https://to.test/?v=")
		want := "(?s)^(?:" + values[name] + ")$"
		plain, err := url.PathUnescape(got)
		if re := regexp.MustCompile(want); !ok || err != nil || !re.MatchString(got) && !re.MatchString(plain) {
			t.Errorf("$%s: %s %q, want %s", name, resp.Status, resp.Header.Get("Location"), want)
		}
	}
	if a, b := r.id(), r.id(); a == b {
		t.Errorf("two requests have one $request_id %s", a)
	}
}

// id asks for $request_id, which is one in all of an exchange.
func (r *rig) id() string {
	r.t.Helper()
	r.route(path(schema.Options{Redirect: "/$request_id-$request_id"}))
	resp, _ := r.ask("GET /\nHost: h")
	first, second, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Location"), "/"), "-")
	if first != second || len(first) != 32 {
		r.t.Errorf("$request_id is %s and %s", first, second)
	}
	return first
}
