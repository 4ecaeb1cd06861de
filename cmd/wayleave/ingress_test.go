package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave.dev/internal/cli"
)

// The status says whether all carries over, as scripts want it.
func TestIngressCheckOfFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.yaml")
	text := "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: main, annotations: " +
		"{nginx.ingress.kubernetes.io/rewrite-target: /}}\n" +
		"spec: {ingressClassName: nginx, rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, " +
		"backend: {service: {name: web, port: {number: 80}}}}]}}]}\n"
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	requests, differ := filepath.Join(t.TempDir(), "requests"), filepath.Join(t.TempDir(), "differ")
	lookAhead := strings.NewReplacer("rewrite-target: /", "use-regex: 'true'", "path: /,", "path: '/x(?!y)',",
		"pathType: Prefix", "pathType: ImplementationSpecific").Replace(text)
	for name, body := range map[string]string{differ: lookAhead,
		requests: "GET http://a.example/x\nGET https://a.example/y\n", file: text,
		bad: strings.Replace(text, "rewrite-target", "server-snippet", 1)} {
		if err := os.WriteFile(name, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"-f", file}, 0, "1 of 1 Ingresses for Wayleave carry over completely"},
		{[]string{"-f", bad}, 1, "NO   metadata.annotations[nginx.ingress.kubernetes.io/server-snippet]: is not built"},
		{[]string{"-f", file, "--requests", requests}, 0,
			"0 of 2 requests are served otherwise than by ingress-nginx."},
		{[]string{"-f", differ, "--requests", requests}, 1, "GET http://a.example/x: ingress-nginx: 503 by /x(?!y) " +
			"of Ingress default/main; Wayleave: 404\n1 of 2 requests"},
		{[]string{"-f", file, "--requests", file}, 2, "line 1: "},
		{[]string{"-f", file, "--requests", "none"}, 2, "no such file"},
		{[]string{"-f", file, "--adopt-nginx=false"}, 0, "class nginx is not for Wayleave"},
		{[]string{"-f", file + "x"}, 2, "no such file"},
		{[]string{"-f", file, "more"}, 2, `found "more"; no argument is allowed`},
		{[]string{"--file", file}, 2, "unknown flag"},
	} {
		c := root()
		var out bytes.Buffer
		c.SetArgs(append([]string{"ingress", "check"}, tc.args...))
		c.SetOut(&out)
		c.SetErr(&out)
		err := c.Execute()
		var status cli.Status
		if err != nil && !errors.As(err, &status) {
			t.Errorf("%q: the error has no status: %v", tc.args, err)
		}
		if status.Cause != nil {
			out.WriteString(status.Cause.Error())
		}
		if status.Code != tc.status || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%q: status %d, printed %s", tc.args, status.Code, &out)
		}
	}
}
