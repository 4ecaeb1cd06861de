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

// The status says allowed, denied or unknown, as scripts want it.
func TestExplainPolicyOfFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.yaml")
	text := "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n" +
		"apiVersion: v1\nkind: Pod\nmetadata: {name: b}\n---\n" +
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, " +
		"ingress: [{ports: [{port: 80}]}]}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"default/a", "default/b:80/TCP", "-f", file}, 0, "default/p spec.ingress[0]: allows this"},
		{[]string{"default/a", "default/b:81/TCP", "-f", file}, 1,
			"default/p spec.ingress[0]: is for this peer, but not for this port"},
		{[]string{"default/a", "default/c:81/TCP", "-f", file}, 2, "pod default/c does not exist"},
		{[]string{"default/a", "default/b:81/TCP", "-f", file + "x"}, 2, "no such file"},
		{[]string{"default/a"}, 2, "FROM and TO:PORT/PROTO are needed: found 1 arguments"},
		{[]string{"default/a", "default/b:1", "--files"}, 2, "unknown flag"},
	} {
		c := root()
		var out bytes.Buffer
		c.SetArgs(append([]string{"explain", "policy"}, tc.args...))
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
