package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave.dev/config"
)

func TestImportCorefile(t *testing.T) {
	c := root()
	var out, notes bytes.Buffer
	c.SetArgs([]string{"dns", "import-corefile", "-"})
	c.SetIn(strings.NewReader(".:53 {\n  errors\n  kubernetes cluster.local in-addr.arpa {\n    fallthrough " +
		"in-addr.arpa\n  }\n  rewrite name a.example b.example\n  forward . tls://9.9.9.9 {\n    tls_servername " +
		"dns.quad9.net\n  }\n  cache 60\n}\ncorp.example {\n  forward . 10.1.0.53\n}\n"))
	c.SetOut(&out)
	c.SetErr(&notes)
	if err := c.Execute(); err == nil || err.Error() != "not carried over: 1, each named above" {
		t.Errorf("error is %v", err)
	}
	if want := "line 2: note: errors: built in: failures are logged and counted\nline 6: not carried over: rewrite: " +
		"use an ExternalName Service or `dns.hosts`\n"; notes.String() != want {
		t.Errorf("said\n%s\nwant\n%s", &notes, want)
	}
	// What is printed is a settings file.
	cfg, err := config.Parse(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.DNS.Upstreams) != 1 || cfg.DNS.Upstreams[0].ServerName != "dns.quad9.net" ||
		len(cfg.DNS.StubDomains["corp.example."]) != 1 || cfg.ClusterDomain != "cluster.local" {
		t.Errorf("printed\n%s", &out)
	}
	// A file is named with its lines.
	file := filepath.Join(t.TempDir(), "Corefile")
	if err := os.WriteFile(file, []byte(
		".:53 {\n  hosts extra.hosts corp.test {\n    192.0.2.30 printer.corp.test\n    fallthrough\n  }\n}\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	c = root()
	notes.Reset()
	c.SetArgs([]string{"dns", "import-corefile", file})
	c.SetOut(&out)
	c.SetErr(&notes)
	if err := c.Execute(); err == nil || !strings.HasPrefix(notes.String(),
		file+":2: not carried over: hosts extra.hosts corp.test: ") {
		t.Errorf("a hosts file: %v, %s", err, &notes)
	}
	// A value that is none harms no other.
	c = root()
	out.Reset()
	notes.Reset()
	c.SetArgs([]string{"dns", "import-corefile", "-"})
	c.SetIn(strings.NewReader("bad..zone {\n forward . 10.0.0.1\n}\n. {\n forward . 10.0.0.2\n}"))
	c.SetOut(&out)
	c.SetErr(&notes)
	if err := c.Execute(); err == nil || !strings.Contains(notes.String(), "bad..zone: it is neither") ||
		out.String() != "dns:\n  upstreams:\n  - 10.0.0.2:53\n" {
		t.Errorf("a value that is none: %v, %s%s", err, &out, &notes)
	}
	// ConfigMaps as kubectl prints them, with what the Corefile imports.
	c = root()
	out.Reset()
	c.SetArgs([]string{"import", "corefile", "-f", "-"})
	c.SetIn(strings.NewReader("apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ConfigMap\n  data:\n" +
		"    Corefile: |\n      .:53 {\n        forward . 9.9.9.9\n      }\n      import custom/*.server\n" +
		"    NodeHosts: \"\"\n" +
		"- apiVersion: v1\n  kind: ConfigMap\n  data:\n    corp.server: |\n      corp.test {\n        forward . " +
		"10.1.0.53\n      }\n"))
	c.SetOut(&out)
	if err := c.Execute(); err != nil || out.String() !=
		"dns:\n  stubDomains:\n    corp.test:\n    - 10.1.0.53:53\n  upstreams:\n  - 9.9.9.9:53\n" {
		t.Errorf("ConfigMaps: %v\n%s", err, &out)
	}
	c = root()
	c.SetArgs([]string{"import", "corefile", "-f", "-"})
	c.SetIn(strings.NewReader("apiVersion: v1\nkind: ConfigMap\ndata: {a: b}\n"))
	if err := c.Execute(); err == nil || err.Error() != "the ConfigMaps have no key Corefile" {
		t.Errorf("a ConfigMap of another program: %v", err)
	}
}
