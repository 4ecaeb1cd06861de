package ingress

// moreValuesCases are those of annotations that came later.
func moreValuesCases() []valuesCase {
	guard := func(c valuesCase) valuesCase { c.here = "closed"; return c }
	with := func(c valuesCase, more string) valuesCase { c.name += "|" + more; return c }
	numbers := func(name string, refused ...string) valuesCase {
		return valuesCase{name: name, same: [][]string{{"5", "+5", "05"}, {"0"}},
			refused: append(append([]string{"-5"}, refused...), noInts...), there: itsDefault}
	}
	onOff := func(name string) valuesCase {
		return valuesCase{name: name, same: [][]string{{"on", " on"}, {"off", " off"}}, refused: []string{"true", "On",
			"yes"}, there: itsDefault}
	}
	const url, auth = "https://new.example/x", "auth-url: https://auth.example/"
	list := []valuesCase{
		// Guards and limits.
		guard(valuesCase{name: "denylist-source-range",
			same: [][]string{{"10.0.0.0/8,192.0.2.1", "10.0.0.0/8, 192.0.2.1", " 10.0.0.0/8 ,192.0.2.1/32,"},
				{"2001:db8::/32"}}, refused: []string{"", "x", "10.0.0.0/33", "10.0.0.0/8 192.0.2.0/24", "*"},
			there: itsDenied}),
		guard(valuesCase{name: "satisfy", same: [][]string{{"any", " any"}, {"all"}}, refused: []string{"", "Any",
			"both", "any all"}, there: itsDefault}),
		guard(numbers("limit-connections", "")),
		numbers("limit-rate", "10k"),
		with(numbers("limit-rate-after", "10k"), "limit-rate: 5"),
		with(valuesCase{name: "limit-whitelist", same: [][]string{{"10.0.0.0/8,192.0.2.1", "10.0.0.0/8, 192.0.2.1,"}},
			refused: []string{"x", "10.0.0.0/33"}, there: itsDefault}, "limit-rps: 5"),
		with(valuesCase{name: "limit-allowlist", same: [][]string{{"10.0.0.0/8", " 10.0.0.0/8"}},
			refused: []string{"x"}, there: itsDefault}, "limit-rps: 5"),
		with(switchValues("auth-always-set-cookie"), auth),
		with(valuesCase{name: "auth-cache-key", same: [][]string{{"$http_authorization", " $http_authorization"},
			{"$cookie_a$remote_user"}}, refused: []string{"text", "$nothing"}, there: itsWrong,
			note: "a key without a variable is taken there, and gives everybody one answer"}, auth),
		{name: "auth-cache-duration|" + auth + "|auth-cache-key: $cookie_a",
			same: [][]string{{"200 202 401 5m", " 200 202 401  5m", "200 202 401 300s", "200 202 401 300"},
				{"200 10m, 401 1m", "200 10m,401 1m,"}, {"any 1h30m"}}, refused: []string{"soon", "200 5y", "abc 5m",
				"200 48h"}, there: itsDefault, here: `{"authURL":{"url":"https://auth.example/"}}`,
			says: "no answer is used again"},
		with(valuesCase{name: "auth-signin-redirect-param", same: [][]string{{"next", " next"}},
			refused: []string{"a b", "a=b"}, there: itsDefault}, auth),
		with(valuesCase{name: "auth-request-redirect", same: [][]string{{"$request_uri", " $request_uri"},
			{"https://$host/x"}}, refused: []string{"$nothing", "a\x01b"}, there: itsDefault}, auth),
		// What is sent.
		{name: "x-forwarded-prefix", same: [][]string{{"/app", " /app"}, {"$http_x"}}, refused: []string{"$nothing",
			"a\x01b"}, there: itsDefault},
		{name: "upstream-vhost", same: [][]string{{"inner.example", " inner.example"}, {"inner.example:8080"},
			{"$host"}}, refused: []string{"a b", "$nothing", "a/b"}, there: itsDefault},
		{name: "connection-proxy-header", same: [][]string{{"keep-alive", " keep-alive", ""}},
			refused: []string{"close", "upgrade"}, there: itsDefault, note: "close is taken there, and not built here"},
		{name: "proxy-cookie-domain", same: [][]string{{"localhost shop.example", "localhost  shop.example"},
			{"off", ""}}, refused: []string{"localhost", "a b c", "~( x"}, there: itsDefault},
		{name: "proxy-cookie-path", same: [][]string{{"/one/ /", " /one/ /"}, {"~*^/x /"}, {"off", ""}},
			refused: []string{"/one", "/a /b;c", "~( x"}, there: itsDefault},
		with(valuesCase{name: "proxy-redirect-from", same: [][]string{{"http://a/", " http://a/"}, {"off", "default"}},
			refused: []string{"a b", "~("}, there: itsDefault}, "proxy-redirect-to: https://b/"),
		with(valuesCase{name: "proxy-redirect-to", same: [][]string{{"https://b/", " https://b/"}},
			refused: []string{"a b"}, there: itsDefault}, "proxy-redirect-from: http://a/"),
		switchValues("enable-access-log"), switchValues("preserve-trailing-slash"), switchValues("http2-push-preload"),
		switchValues("relative-redirects"), switchValues("ssl-prefer-server-ciphers"),
		{name: "ssl-ciphers", same: [][]string{{"ECDHE-RSA-AES128-GCM-SHA256:HIGH:!aNULL",
			" ECDHE-RSA-AES128-GCM-SHA256"}}, refused: []string{"HIGH", "!aNULL"}, there: itsWrong,
			note: "groups as HIGH are taken there, and count for nothing here"},
		// When endpoints fail.
		{name: "proxy-next-upstream", same: [][]string{{"error timeout", " error  timeout"},
			{"http_502 non_idempotent"}, {"off"}}, refused: []string{"http_418", "Error", "never"}, there: itsDefault},
		numbers("proxy-next-upstream-tries"), numbers("proxy-next-upstream-timeout", "5s"),
		{name: "default-backend", same: [][]string{{"api", " api"}}, refused: []string{"none", "a/b", "API"},
			there: itsDefault},
		with(valuesCase{name: "custom-http-errors", same: [][]string{{"404,503", "404, 503", " 404 ,503,"}},
			refused: []string{"abc", "200", "404;503"}, there: itsDefault}, "default-backend: api"),
		with(switchValues("disable-proxy-intercept-errors"), "default-backend: api"),
		// Balancing.
		with(switchValues("session-cookie-partitioned"), "affinity: cookie"),
		with(switchValues("session-cookie-change-on-failure"), "affinity: cookie"),
		with(switchValues("session-cookie-conditional-samesite-none"), "affinity: cookie"),
		with(valuesCase{name: "session-cookie-domain", same: [][]string{{"shop.example", " shop.example"},
			{".shop.example"}}, refused: []string{"a b", "a;b"}, there: itsDefault}, "affinity: cookie"),
		with(switchValues("upstream-hash-by-subset"), "upstream-hash-by: $host"),
		with(valuesCase{name: "upstream-hash-by-subset-size", same: [][]string{{"5", "+5", "05"}},
			refused: append([]string{"0", "-1", "65"}, noInts...), there: itsDefault},
			"upstream-hash-by: $host|upstream-hash-by-subset: true"),
		// Others.
		switchValues("from-to-www-redirect"), switchValues("service-upstream"),
		{name: "mirror-target", same: [][]string{{"https://m.example$request_uri", " https://m.example$request_uri"},
			{"http://m.example/x"}}, refused: []string{"/x", "ftp://x/", "https://x/$nothing", "http://127.0.0.1/"},
			there: itsDefault},
		with(valuesCase{name: "mirror-request-body", same: [][]string{{"on", " on", ""}, {"off"}},
			refused: []string{"true", "On"}, there: itsDefault}, "mirror-target: "+url),
		with(valuesCase{name: "mirror-host", same: [][]string{{"m.example", " m.example"}, {"$host"}},
			refused: []string{"a b", "$nothing"}, there: itsDefault}, "mirror-target: "+url),
		// TLS to endpoints.
		with(onOff("proxy-ssl-server-name"), "proxy-ssl-name: a.example|backend-protocol: HTTPS"),
		guard(with(valuesCase{name: "proxy-ssl-name", same: [][]string{{"web.example", " web.example"}},
			refused: []string{"a b", "a/b"}, there: itsDefault}, "backend-protocol: HTTPS")),
		guard(with(valuesCase{name: "proxy-ssl-verify-depth", same: [][]string{{"2", "+2", "02"}, {"0"}},
			refused: append([]string{"-1", "17"}, noInts...), there: itsDefault}, "backend-protocol: HTTPS")),
		with(valuesCase{name: "proxy-ssl-protocols", same: [][]string{{"TLSv1.2 TLSv1.3", " TLSv1.3  TLSv1.2",
			"SSLv3 TLSv1.2 TLSv1.3"}}, refused: []string{"TLSv9", "tlsv1.2", "SSLv3"}, there: itsDefault},
			"proxy-ssl-name: a.example|backend-protocol: HTTPS"),
		with(valuesCase{name: "proxy-ssl-ciphers",
			same:    [][]string{{"ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256:HIGH"}},
			refused: []string{"HIGH"}, there: itsWrong}, "proxy-ssl-name: a.example|backend-protocol: HTTPS"),
	}
	return list
}
