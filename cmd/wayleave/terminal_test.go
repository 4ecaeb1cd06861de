package main

import (
	"strings"
	"testing"
)

// Names and paths of other people's objects reach no terminal as commands, in results, warnings and errors.
func TestObjectsGiveTheTerminalNoOrders(t *testing.T) {
	const ingress = `{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: "a\e[31m", namespace: shop,
annotations: {"nginx.ingress.kubernetes.io/whitelist-source-range": "\e[2J", "x.example/y\e]0;z\a": "1"}},
spec: {ingressClassName: wayleave, rules: [{host: "a.example", http: {paths: [{path: "/\e[2J\u009b1m\u202e",
pathType: Prefix, backend: {service: {name: "gone\e[8m", port: {number: 80}}}}]}}]}}`
	for _, args := range [][]string{
		{"ingress", "check", "-f", "-"}, {"ingress", "check", "-f", "-", "-o", "json"},
		{"render", "-f", "-"}, {"explain", "policy", "pod/a/\x1b[2J", "pod/b/c:80/TCP", "-f", "-"},
		{"no\x1b[2J"}, {"status", "--\x1b[2J"},
	} {
		out, errs, _ := run(t, ingress, args...)
		for _, text := range []string{out, errs} {
			if i := strings.IndexAny(text, "\x1b\a\u009b\u202e"); i >= 0 {
				t.Errorf("%q prints %q", args, text[max(0, i-20):min(len(text), i+20)])
			}
		}
		if shown := strings.Contains(out+errs, `\u001b[`); !shown && (args[0] == "ingress" || args[0] == "explain") {
			t.Errorf("%q does not show what the object has: %q %q", args, out, errs)
		}
	}
}
