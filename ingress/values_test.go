package ingress

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// What ingress-nginx does with a value that it refuses.
const (
	itsDefault = "the default"     // the annotation counts for nothing
	itsDenied  = "503"             // the location is denied
	itsIgnored = "no such Ingress" // the whole Ingress is ignored until it is mended
	itsWrong   = "no reload"       // nginx refuses the configuration of all hosts
)

// valuesCase are spellings of one annotation: what ingress-nginx takes, and what it refuses.
type valuesCase struct {
	// name is the annotation, with other annotations that it needs behind "|", "name: value" each.
	name string
	// same are spellings of one value, which all have the options of the first; more are others
	// that are taken.
	same [][]string
	// refused are not taken; there is what ingress-nginx does then.
	refused []string
	there   string
	// here says what we do where that is not the default with an Event: "closed", or the options.
	here string
	// says is here for the documentation.
	says string
	// note is for the documentation.
	note string
}

var (
	trues   = []string{"true", "True", "TRUE", "t", "T", "1"}
	falses  = []string{"false", "False", "FALSE", "f", "F", "0"}
	noBools = []string{"yes", "on", "tRUE", "2", "true,", "y", `"true"`, "enabled"}
	noInts  = []string{"five", "5s", "5.0", "1_0", "0x5", "1e3", "5,", "9999999999999999999"}
	noSizes = []string{"8mb", "m", "-1", "1.5m", "8 m", "8t", "99999999999999999999g"}
)

func switchValues(name string) valuesCase {
	return valuesCase{name: name, same: [][]string{trues, falses}, refused: noBools, there: itsDefault}
}

func numberValues(name string) valuesCase {
	return valuesCase{name: name, same: [][]string{{"5", "+5", "05"}}, refused: noInts, there: itsDefault}
}

// valuesCases are all annotations that are read, with every kind of spelling.
func valuesCases() []valuesCase {
	guard := func(c valuesCase) valuesCase { c.here = "closed"; return c }
	as := func(c valuesCase, there, here, note string) valuesCase {
		c.there, c.here, c.note = there, here, note
		return c
	}
	with := func(c valuesCase, more string) valuesCase { c.name += "|" + more; return c }
	list := []valuesCase{
		// Routing.
		{name: "server-alias", same: [][]string{{"b.example", " b.example ", "B.example", "b.example,", ",b.example,,"},
			{"b.example,*.c.example", "b.example , *.c.example"}}, refused: []string{"a_b.example", "a b", "*",
			"~^www[0-9]+$"}, there: itsDefault, note: "expressions (`~^www\\d+$`) are taken there, and not here"},
		{name: "rewrite-target", same: [][]string{{"/x", " /x"}, {"/$1"}, {"x/$1"}, {"https://new.example/$1"},
			{"/a-b_c.d~e"}}, refused: []string{"/x y", "/$nothing", "ftp://x/", `/"`}, there: itsDefault,
			note: "`?`, `{}` and `%` are refused there since validation is the default, and taken here"},
		as(switchValues("use-regex"), itsDefault, "regex",
			"what cannot be read counts as true here, so that a guarded pattern stays one"),
		{name: "backend-protocol", same: [][]string{{"HTTPS", "https", "Https", " HTTPS "}, {"GRPC", "grpc", "gRPC"},
			{"GRPCS", "grpcs"}, {"HTTP", "http", ""}}, refused: []string{"h2c", "HTTP2", "https,", "tcp", "AUTO_HTTP",
			"FCGI", "auto_http"}, there: itsDefault, note: "AUTO_HTTP and FCGI are taken there, and not built here"},
		{name: "proxy-http-version", same: [][]string{{"1.1", " 1.1", ""}}, refused: []string{"1.0", "2", "HTTP/1.1"},
			there: itsDefault, note: "1.0 is taken there, and not built here"},
		{name: "proxy-body-size", same: [][]string{{"8m", "8M", "8192k", "8192K", "8388608"}, {"1g", "1G", "1024m"},
			{"0", "0m"}}, refused: noSizes, there: itsDefault},
	}
	for _, name := range []string{"proxy-connect-timeout", "proxy-send-timeout", "proxy-read-timeout"} {
		c := numberValues(name)
		c.same = append(c.same, []string{"86400"}, []string{"31536000", "+31536000"})
		c.refused = append(c.refused, "0", "-5", "5m", "1h")
		list = append(list, c)
	}
	for _, name := range []string{"proxy-buffering", "proxy-request-buffering", "client-body-buffer-size",
		"proxy-buffer-size", "proxy-buffers-number", "proxy-busy-buffers-size", "proxy-max-temp-file-size",
		"enable-rewrite-log"} {
		list = append(list, valuesCase{name: name, same: [][]string{{"on", "off", "8k", "4", "", "whatever"}},
			there: itsDefault, note: "has nothing to do here, whatever it says"})
	}
	const url = "https://new.example/x"
	list = append(list,
		// Redirects.
		switchValues("ssl-redirect"),
		as(switchValues("force-ssl-redirect"), itsDefault, `"redirectTLS":308`,
			"what cannot be read counts as true here"),
		valuesCase{name: "permanent-redirect", same: [][]string{{url, " " + url}, {"/x"},
			{"https://new.example/?a=b&c=d"}, {"https://$host/x"}, {"https://${host}/x"}},
			refused: []string{"new.example", "ftp://x/", "https://x/ y", "https://x/$nothing", "javascript:alert(1)"},
			there:   itsIgnored, note: "variables are refused there since validation is the default, and taken here"},
		valuesCase{name: "temporal-redirect", same: [][]string{{url, " " + url}, {"https://new.example/?a=b&c=d"}},
			refused: []string{"new.example", "ftp://x/", "https://x/$nothing"}, there: itsIgnored,
			note: "a path alone is refused there, and taken here"},
		with(valuesCase{name: "permanent-redirect-code", same: [][]string{{"308", "+308"}, {"301"}, {"302"}, {"307"}},
			refused: append([]string{"200", "309", "404"}, noInts...), there: itsIgnored,
			note: "a number that is out of 300 to 308 is 301 there, too"}, "permanent-redirect: "+url),
		with(valuesCase{name: "temporal-redirect-code", same: [][]string{{"307", "+307"}, {"302"}, {"303"}},
			refused: append([]string{"200", "308", "404"}, noInts...), there: itsIgnored,
			note: "a number that is out of 300 to 307 is 302 there, too"}, "temporal-redirect: "+url),
		valuesCase{name: "app-root", same: [][]string{{"/app", " /app"}, {"/app/x-y_z.d"}},
			refused: []string{"app", "https://x/app", "/", "/a b", "/$nothing"}, there: itsDefault,
			note: "/ is a loop"},
		// Balancing.
		valuesCase{name: "affinity", same: [][]string{{"cookie", " cookie"}, {""}}, refused: []string{"Cookie", "ip",
			"client-ip"}, there: itsDefault},
		with(valuesCase{name: "affinity-mode", same: [][]string{{"balanced", "persistent", " balanced", ""}},
			refused: []string{"Balanced", "sticky"}, there: itsDefault}, "affinity: cookie"),
		with(valuesCase{name: "session-cookie-name", same: [][]string{{"route", " route"}, {"a-b_c.d~"}},
			refused: []string{"a b", "a;b", "a=b", "a/b"}, there: itsDefault,
			note: "`/` and `:` are taken there, though no cookie has such a name"}, "affinity: cookie"),
		with(valuesCase{name: "session-cookie-path", same: [][]string{{"/x", " /x"}, {"/"}},
			refused: []string{"x", "/a b", "/a;b", "/a,b"}, there: itsDefault}, "affinity: cookie"),
		with(valuesCase{name: "session-cookie-max-age", same: [][]string{{"172800", "+172800"}, {"0", "", "00"}},
			refused: append([]string{"-1"}, noInts...), there: itsDefault}, "affinity: cookie"),
		with(valuesCase{name: "session-cookie-expires", same: [][]string{{"172800"}, {"0", ""}},
			refused: append([]string{"-1"}, noInts...), there: itsDefault}, "affinity: cookie"),
		with(valuesCase{name: "session-cookie-samesite", same: [][]string{{"None", "none", "NONE", " None"},
			{"Lax", "lax"}, {"Strict", "strict", "STRICT"}}, refused: []string{"no", "Lax;", "relaxed"},
			there: itsDefault}, "affinity: cookie"),
		with(switchValues("session-cookie-secure"), "affinity: cookie"),
		valuesCase{name: "upstream-hash-by", same: [][]string{{"$binary_remote_addr", " $binary_remote_addr"},
			{"$Binary_Remote_Addr"}, {"${server_name}${request_uri}"}, {"$request_uri"}, {"$http_x_user_id"}, {"text"},
			{""}}, refused: []string{"$nothing", "$upstream_addr", "${host", "$"}, there: itsIgnored,
			note: "a variable that nginx does not know stops its reload for all hosts"},
		valuesCase{name: "load-balance", same: [][]string{{"round_robin", " round_robin"}, {"", "ewma"}},
			refused: []string{"least_conn", "Round_Robin", "random", "chash", "sticky_balanced"}, there: itsIgnored,
			note: "the names of its own balancers are taken there; ewma is the less busy of two here"},
		// Canaries.
		as(with(valuesCase{name: "canary", same: [][]string{trues, falses}, refused: noBools, there: itsDefault},
			"canary-weight: 0"), "it is a main Ingress", "canary",
			"what cannot be read counts as true here, so that a canary is never a main backend"),
		with(valuesCase{name: "canary-weight", same: [][]string{{"5", "+5", "05"}, {"0"}, {"100"}},
			refused: append([]string{"-5", "5%"}, noInts...), there: itsDefault}, "canary: true"),
		with(valuesCase{name: "canary-weight-total", same: [][]string{{"1000", "+1000"}, {"100", ""}},
			refused: append([]string{"0", "-5", "50"}, noInts...), there: itsDefault, note: "less than 100 is 100"},
			"canary: true|canary-weight: 5"),
		with(valuesCase{name: "canary-by-header", same: [][]string{{"X-New", " X-New"}},
			refused: []string{"X New", "X:New", "X,New"}, there: itsDefault}, "canary: true|canary-weight: 5"),
		with(valuesCase{name: "canary-by-header-value", same: [][]string{{"yes", " yes"}, {"a b"}},
			refused: []string{"a\x01b"}, there: itsDefault, here: `"weight":5`, says: "the header takes nobody"},
			"canary: true|canary-by-header: X-New|canary-weight: 5"),
		with(valuesCase{name: "canary-by-header-pattern", same: [][]string{{"^yes$"}, {"(a|b)+"}},
			refused: []string{"(", "(?=x)", "[z-a]"}, there: itsDefault, here: `"weight":5`,
			says: "the header takes nobody", note: "what RE2 has not is taken there"},
			"canary: true|canary-by-header: X-New|canary-weight: 5"),
		with(valuesCase{name: "canary-by-cookie", same: [][]string{{"beta", " beta"}}, refused: []string{"a b", "a;b"},
			there: itsDefault}, "canary: true|canary-weight: 5"),
		// Guards.
		guard(valuesCase{name: "whitelist-source-range",
			same: [][]string{{"10.0.0.0/8,192.0.2.1", "10.0.0.0/8, 192.0.2.1", " 10.0.0.0/8 ,192.0.2.1/32",
				"10.1.2.3/8,192.0.2.1", "10.0.0.0/8,192.0.2.1,"}, {"2001:db8::/32", "2001:DB8::1/32"}},
			refused: []string{"", "x", "10.0.0.0/8;192.0.2.1", "10.0.0.0/33", "010.0.0.0/8", "10.0.0.0/8 192.0.2.0/24",
				"10.0.0.0-10.0.0.9", "fe80::1%eth0", "*"}, there: itsDenied, note: "an empty entry is refused there"}),
		guard(valuesCase{name: "allowlist-source-range", same: [][]string{{"10.0.0.0/8", " 10.0.0.0/8"},
			{"0.0.0.0/0,::/0"}}, refused: []string{"", "x", "10.0.0.0/8 192.0.2.0/24"}, there: itsDenied}),
		guard(with(valuesCase{name: "auth-type", same: [][]string{{"basic", " basic", "basic "}},
			refused: []string{"", "Basic", "BASIC", "digest", "basic,digest", "none"}, there: itsIgnored,
			note: "digest is built there; an empty value asks for no password there"}, "auth-secret: users")),
		guard(with(valuesCase{name: "auth-secret", same: [][]string{{"users", " users", "shop/users"}},
			refused: []string{"", "none", "other/users", "a/b/c", "../x", "Users"}, there: itsDenied},
			"auth-type: basic")),
		guard(with(valuesCase{name: "auth-secret-type", same: [][]string{{"auth-file", " auth-file"}},
			refused: []string{"", "file", "Auth-File", "htpasswd"}, there: itsIgnored,
			note: "an empty value is auth-file there"}, "auth-type: basic|auth-secret: users")),
		with(valuesCase{name: "auth-realm", same: [][]string{{"shop", " shop"}, {"two words"}, {`with "quotes"!`}},
			refused: []string{"a\x01b"}, there: itsIgnored, note: "marks but - . _ ~ / : are refused there"},
			"auth-type: basic|auth-secret: users"),
		guard(valuesCase{name: "auth-url",
			same: [][]string{{"https://auth.example/check", " https://auth.example/check"},
				{"http://auth.example:8080/x?a=$request_uri"}, {"https://$host/oauth2/auth"},
				{"https://${host}/oauth2/auth"}}, refused: []string{"", "auth.example", "/check", "ftp://x/", "http://",
				"http://x/$nothing", "http://x/$ssl_client_s_dn", "http:/x", "https://x y/"}, there: itsDenied,
			note: "an empty value asks nobody there"}),
		guard(with(valuesCase{name: "auth-method", same: [][]string{{"POST", " POST"}, {"HEAD"}},
			refused: []string{"", "post", "G T", "FETCH", "CONNECT", "GET,POST"}, there: itsDenied,
			note: "an empty value is GET there, CONNECT is taken"}, "auth-url: https://auth.example/")),
		with(valuesCase{name: "auth-signin", same: [][]string{{"https://auth.example/start?rd=$escaped_request_uri",
			" https://auth.example/start?rd=$escaped_request_uri"}, {"https://$host/oauth2/start"},
			{"https://$best_http_host/oauth2/start"}}, refused: []string{"/start", "auth.example", "https://x/$nothing",
			"https://x/ y"}, there: itsDefault}, "auth-url: https://auth.example/"),
		guard(with(valuesCase{name: "auth-response-headers", same: [][]string{{"X-User,X-Groups", "X-User, X-Groups",
			" X-User ,X-Groups,", ",X-User,,X-Groups"}}, refused: []string{"", ",", "X User", "X-User;X-Groups",
			"X:User"}, there: itsDenied, note: "an empty list is taken there"}, "auth-url: https://auth.example/")),
		guard(valuesCase{name: "auth-tls-verify-client", same: [][]string{{"off", " off"}}, refused: []string{"", "Off",
			"false", "no"}, there: "on"}),
		guard(valuesCase{name: "enable-modsecurity", same: [][]string{falses},
			refused: append([]string{"true", "True", "1"}, noBools...), there: itsDefault,
			note: "true is built there"}),
		guard(valuesCase{name: "enable-owasp-core-rules", same: [][]string{falses},
			refused: append([]string{"true", "True", "1"}, noBools...), there: itsDefault,
			note: "true is built there"}),
		guard(valuesCase{name: "limit-rps", same: [][]string{{"5", "+5", "05"}, {"0"}},
			refused: append([]string{"", "-5", "5r/s"}, noInts...), there: itsIgnored,
			note: "an empty value and less than 0 are no limit there"}),
		guard(valuesCase{name: "limit-rpm", same: [][]string{{"5", "+5", "05"}, {"0"}},
			refused: append([]string{"", "-5", "5r/m"}, noInts...), there: itsIgnored,
			note: "an empty value and less than 0 are no limit there"}),
		with(valuesCase{name: "limit-burst-multiplier", same: [][]string{{"3", "+3"}, {"0"}},
			refused: append([]string{"-1"}, noInts...), there: itsDefault, note: "less than 0 stops nginx's reload"},
			"limit-rps: 5"),
		// Cross-origin sharing.
		switchValues("enable-cors"),
		as(with(valuesCase{name: "cors-allow-origin", same: [][]string{{"https://a.example,https://*.b.example:8443",
			" https://a.example , https://*.b.example:8443,", "https://a.example,,https://*.b.example:8443"}, {"*"},
			{"null"}, {"app://local"}}, refused: []string{"", "a.example", "https://a.example/path", ",", "https://*"},
			there: "*, or nobody"}, "enable-cors: true"), "*, or nobody", "no cors",
			"without an origin that can be read, CORS is off here"),
		as(with(valuesCase{name: "cors-allow-methods",
			same: [][]string{{"GET, POST", "GET,POST", "GET POST", " GET,  POST,"}}, refused: []string{"", "GET;POST",
				"G(T"}, there: itsDefault}, "enable-cors: true"), itsDefault, "no cors",
			"CORS is off here, since the default may allow more; a star has the default in both"),
		as(with(valuesCase{name: "cors-allow-headers", same: [][]string{{"X-A, X-B", "X-A,X-B", "X-A X-B", "X-A,X-B,"}},
			refused: []string{"", "X-A;X-B", "X:A"}, there: itsDefault}, "enable-cors: true"), itsDefault, "no cors",
			"CORS is off here, since the default may allow more; a star has the default in both"),
		as(with(valuesCase{name: "cors-expose-headers", same: [][]string{{"X-A, X-B", "X-A,X-B", "X-A X-B"}, {"*"}},
			refused: []string{"", "X-A;X-B"}, there: itsDefault}, "enable-cors: true"), itsDefault, "no cors",
			"CORS is off here"),
		as(with(valuesCase{name: "cors-allow-credentials", same: [][]string{trues, falses}, refused: noBools,
			there: "true"}, "enable-cors: true"), "true", "no cors", "CORS is off here, since the default allows more"),
		as(with(valuesCase{name: "cors-max-age", same: [][]string{{"60", "+60"}, {"0", "-1", "-600"}},
			refused: append([]string{""}, noInts...), there: itsDefault}, "enable-cors: true"), itsDefault, "no cors",
			"CORS is off here"),
	)
	return append(list, moreValuesCases()...)
}

// set makes the annotations of a case with a value.
func (c *valuesCase) set(v string) (name string, all map[string]string) {
	parts := strings.Split(c.name, "|")
	all = map[string]string{parts[0]: v}
	for _, p := range parts[1:] {
		k, v, _ := strings.Cut(p, ": ")
		all[k] = v
	}
	return parts[0], all
}

// effect is what annotations do: the options of paths in several spellings and hosts, whether they are
// closed, and what is told.
func effect(t *testing.T, w *fixture, all map[string]string) (what string, closed bool, problems string) {
	t.Helper()
	closed, problems = annotated(t, w, all)
	hosts := w.hosts()
	for _, url := range []string{"http://h.example/p", "http://h.example/P/x", "http://h.example/",
		"http://b.example/p", "http://x.c.example/p"} {
		what += optionsText(hosts, url) + " "
	}
	if h := hosts["h.example"]; h != nil && h.Regex {
		what += "regex"
	}
	return what, closed, problems
}

// valuesWorld is where a case is tried: canaries are of a path of another Ingress, and a host with a
// certificate redirects.
func valuesWorld(t *testing.T, name string) *fixture {
	t.Helper()
	switch {
	case strings.HasPrefix(name, "canary-"):
		return newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("main@1", nil, rules("h.example /p P web:80"))+
			ing("a@2", nil, rules("h.example /p P new:80")))
	case name == "ssl-redirect":
		return newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", nil, rules("h.example /p P web:80"),
			tlsOf("- h.example")))
	}
	return oneIngress(t)
}

// Every spelling that ingress-nginx takes does here what it does there; what it refuses is named, opens
// no guard, and closes one.
func TestValuesOfAnnotations(t *testing.T) {
	for _, c := range valuesCases() {
		name, all := c.set("")
		t.Run(name, func(t *testing.T) {
			w, field := valuesWorld(t, name), annotationField(name)
			for _, spellings := range c.same {
				want := ""
				for i, v := range spellings {
					_, all := c.set(v)
					what, closed, problems := effect(t, w, all)
					if i == 0 {
						want = what
					}
					if what != want || closed || strings.Contains(problems, field) {
						t.Errorf("%q: closed is %v, it has %s, and %q has %s: %s", v, closed, what, spellings[0],
							want, problems)
					}
				}
			}
			delete(all, name)
			without, _, _ := effect(t, w, all)
			for _, v := range c.refused {
				c.refuse(t, w, v, without)
			}
		})
	}
}

// refuse tries a value that ingress-nginx, or Wayleave, does not take.
func (c *valuesCase) refuse(t *testing.T, w *fixture, v, without string) {
	t.Helper()
	name, all := c.set(v)
	what, closed, problems := effect(t, w, all)
	if !strings.Contains(problems, annotationField(name)) {
		t.Errorf("%q is not named: %s", v, problems)
	}
	good := !closed
	switch c.here {
	case "closed":
		good = closed && strings.Contains(problems, "answer 503")
	case "no cors":
		good = good && !strings.Contains(what, `"cors"`)
	case "canary":
		good = good && strings.HasPrefix(what, "404")
	case "":
		good = good && what == without
	default:
		good = good && strings.Contains(what, c.here)
	}
	if !good {
		t.Errorf("%q: closed is %v, it has %s, and none has %s: %s", v, closed, what, without, problems)
	}
}

// The page has the annotations that are read.
func TestAnnotationsHaveValues(t *testing.T) {
	have := map[string]bool{}
	for _, c := range valuesCases() {
		name, _ := c.set("")
		have[name] = true
	}
	n := 0
	for _, a := range annotations() {
		if a.read == nil || a.no {
			continue
		}
		if have[a.name] {
			n++
		} else {
			t.Logf("%s has no case in valuesCases", a.name)
		}
	}
	if n < 55 {
		t.Errorf("only %d annotations have a case", n)
	}
}

// valuesPage is docs/ingress-values.md.
func valuesPage() string {
	var b strings.Builder
	cell := func(list []string) string {
		for i, s := range list {
			if list[i] = "`" + strings.NewReplacer("|", `\|`, "\x01", "␁").Replace(s) + "`"; s == "" {
				list[i] = "empty"
			}
		}
		return strings.Join(list, " ")
	}
	taken, refused := 0, 0
	var rows strings.Builder
	for _, c := range valuesCases() {
		name, _ := c.set("")
		var groups []string
		for _, s := range c.same {
			taken += len(s)
			groups = append(groups, cell(append([]string(nil), s...)))
		}
		refused += len(c.refused)
		here := "the default, and an Event"
		switch c.here {
		case "closed":
			here = "503, and an Event"
		case "no cors":
			here = "no CORS, and an Event"
		case "canary":
			here = "a canary, and an Event"
		case "":
		default:
			here = "true, and an Event"
			if c.says != "" {
				here = c.says + ", and an Event"
			}
		}
		there := c.there
		if len(c.refused) == 0 {
			there, here = "", ""
		}
		fmt.Fprintf(&rows, "| %s | %s | %s | %s | %s | %s |\n", name, strings.Join(groups, "; "),
			cell(append([]string(nil), c.refused...)), there, here, strings.ReplaceAll(c.note, "|", `\|`))
	}
	fmt.Fprintf(&b, `# Values of annotations

How Wayleave parses the values of ingress-nginx's annotations. This page is generated by
ingress.TestValuesOfAnnotations, which tests each value: %d annotations, %d accepted spellings, %d refused values.

- A semicolon separates different values. All spellings of one value have the same effect.
- "There" is ingress-nginx 1.15 with its validation of annotations, which is on by default. "The default" means as if
  the annotation were missing; "no such Ingress" that the whole Ingress is ignored; "503" that the paths are denied.
- Wayleave ignores white space at both ends. An empty value counts as missing, except in annotations that restrict
  access.

| annotation | taken | refused | a refused value there | and here | note |
|---|---|---|---|---|---|
`, len(valuesCases()), taken, refused)
	return b.String() + rows.String()
}

func TestThePageOfValuesIsFresh(t *testing.T) {
	const file = "../docs/ingress-values.md"
	if *update {
		if err := os.WriteFile(file, []byte(valuesPage()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != valuesPage() {
		t.Errorf("%s is not fresh: go test ./ingress -run Fresh -update", file)
	}
}
