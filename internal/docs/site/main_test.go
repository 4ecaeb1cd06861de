package main

import (
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
)

func TestPage(t *testing.T) {
	for _, c := range []struct{ name, file, text, want string }{
		{"a page beside", "docs/dns.md", "see [it](security.md#pods).\n", "see [it](security.md#pods).\n"},
		{"a page at the top", "docs/features/dns.md", "[tour](../../ARCHITECTURE.md)\n",
			"[tour](../ARCHITECTURE.md)\n"},
		{"from the top", "README.md", "[dns](docs/dns.md), [all](docs/features/README.md)\n",
			"[dns](dns.md), [all](features/README.md)\n"},
		{"source code", "docs/dns.md", "[`dns`](../dns) and [plan](../service/plan.go)\n", "`dns` and plan\n"},
		{"over two lines", "README.md", "see [what\nit costs](docs/dns.md#cost).\n",
			"see [what\nit costs](dns.md#cost).\n"},
		{"elsewhere", "docs/dns.md", "[RFC](https://example.com/a#b) [here](#top)\n",
			"[RFC](https://example.com/a#b) [here](#top)\n"},
		{"a picture", "docs/bench-dns.md", "![rate](bench-dns-rate.svg)\n", "![rate](bench-dns-rate.svg)\n"},
		{"a list gets an empty line", "docs/dns.md", "These:\n- one\n- two\nrest\n", "These:\n\n- one\n- two\nrest\n"},
		{"code is kept", "docs/dns.md", "```\na:\n- [x](../dns)\n```\n    [y](../dns)\n",
			"```\na:\n- [x](../dns)\n```\n    [y](../dns)\n"},
	} {
		if got := page(c.file, c.text); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestLay(t *testing.T) {
	top := fstest.MapFS{
		"README.md":          {Data: []byte("# Wayleave\n")},
		"docs/dns.md":        {Data: []byte("# DNS\n")},
		"docs/a/b.svg":       {Data: []byte("<svg/>")},
		"docs/a/script.sh":   {Data: []byte("exit 1")},
		"service/service.go": {Data: []byte("package service")},
	}
	folder := t.TempDir()
	if err := lay(top, folder); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]bool{"index.md": true, "dns.md": true, "a/b.svg": true, "a/script.sh": false} {
		if _, err := os.Stat(filepath.Join(folder, file)); (err == nil) != want {
			t.Errorf("%s: %v", file, err)
		}
	}
}
