package corefile

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// allBuilt says that every setting is there.
func allBuilt(string) bool { return true }

// translated is the settings, and the notes of what is lost after "--"; with all also
// those of what is built in.
func translated(t *testing.T, text string, has func(string) bool, all bool) string {
	t.Helper()
	out, notes, err := Translate(text, has)
	if err != nil {
		return "error: " + err.Error()
	}
	var b strings.Builder
	b.Write(out)
	for _, n := range notes {
		if all || n.Lost {
			b.WriteString(n.String() + "\n")
		}
	}
	return b.String()
}

// kubeadm's own Corefile.
const kubeadm = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
`

func TestTheCorefileOfKubeadm(t *testing.T) {
	want := "clusterDomain: cluster.local\ndns:\n  cacheTTL: 30s\n  negativeTTL: 30s\n  pods: insecure\n"
	if got := translated(t, kubeadm, allBuilt, false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	got := translated(t, kubeadm, func(key string) bool { return key != "dns.pods" }, false)
	if !strings.Contains(got, "line 8: not carried over: pods insecure: it is not built yet") ||
		strings.Contains(got, "pods: insecure") {
		t.Errorf("a setting that is not built:\n%s", got)
	}
	// Every directive is either a setting or is spoken of.
	_, notes, err := Translate(kubeadm, allBuilt)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, n := range notes {
		name, _, _ := strings.Cut(n.Text, ":")
		said = append(said, name)
	}
	if got := strings.Join(said,
		" "); got != "errors health lameduck ready prometheus max_concurrent loop reload loadbalance" {
		t.Errorf("spoken of are %s", got)
	}
}

func TestTranslate(t *testing.T) {
	for _, tc := range []struct{ what, in, want string }{
		{"upstreams", ". {\n forward . 10.0.0.1 10.0.0.2:5353 dns://10.0.0.3\n}",
			"dns:\n  upstreams:\n  - 10.0.0.1:53\n  - 10.0.0.2:5353\n  - 10.0.0.3:53\n"},
		{"TLS", ". {\n forward . tls://9.9.9.9 tls://149.112.112.112 {\n  tls_servername dns.quad9.net\n  " +
			"health_check 5s\n }\n}",
			"dns:\n  upstreams:\n  - tls://9.9.9.9:853@dns.quad9.net\n  - tls://149.112.112.112:853@dns.quad9.net\n"},
		{"a stub domain by a block", "Corp.example.:53 b.example {\n forward . 10.1.0.53\n}",
			"dns:\n  stubDomains:\n    b.example:\n    - 10.1.0.53:53\n    corp.example:\n    - 10.1.0.53:53\n"},
		{"a stub domain by FROM", ". {\n forward corp.example 10.1.0.53\n forward . 10.0.0.1\n}",
			"dns:\n  stubDomains:\n    corp.example:\n    - 10.1.0.53:53\n  upstreams:\n  - 10.0.0.1:53\n"},
		{"FROM outside of the block", "a.example {\n forward b.example 10.1.0.53\n}",
			"{}\nline 2: not carried over: forward b.example: it is not within the server block's zones\n"},
		{"hosts", ". {\n hosts {\n  10.0.0.9 printer.corp.example nas.corp.example\n  fd00::9 nas.corp.example\n  " +
			"fallthrough\n }\n}",
			"dns:\n  hosts:\n    nas.corp.example:\n    - 10.0.0.9\n    - fd00::9\n    printer.corp.example:\n   " +
				" - 10.0.0.9\n"},
		{"a hosts file", ". {\n hosts /etc/hosts\n}", "{}\nline 2: not carried over: hosts /etc/hosts: files are " +
			"not read; write the lines of /etc/hosts into the Corefile\nline 2: not carried over: hosts without " +
			"fallthrough: names that it lacks are forwarded\n"},
		{"cache", ". {\n cache {\n  success 9984 600\n  denial 9984 60\n  serve_stale 12h\n  prefetch 10\n }\n}",
			"dns:\n  cacheTTL: 10m0s\n  negativeTTL: 1m0s\n  staleFor: 12h0m0s\n"},
		{"parts of a cache", ". {\n cache 3600 example.com {\n  keepttl\n  disable denial\n }\n}",
			"dns:\n  cacheTTL: 1h0m0s\nline 2: not carried over: cache for example.com only: there is one cache for " +
				"all zones\nline 3: not carried over: cache: keepttl\nline 4: not carried over: disable denial: the " +
				"cache is for all names outside of the cluster\n"},
		{"two values of one setting", ". {\n cache 60\n}\na.example {\n cache 30\n}",
			"dns:\n  cacheTTL: 1m0s\n  negativeTTL: 1m0s\nline 5: not carried over: cacheTTL: 30s; line 2 set 1m0s, " +
				"and there is one setting for all zones\nline 5: not carried over: negativeTTL: 30s; line 2 set " +
				"1m0s, and there is one setting for all zones\n"},
		{"options of kubernetes",
			". {\n kubernetes a.example b.example {\n  namespaces x\n  ttl 5\n  fallthrough\n }\n}",
			"clusterDomain: a.example\ndns:\n  extraDomains:\n  - b.example\n  pods: disabled\nline 3: not carried " +
				"over: kubernetes: namespaces x\nline 4: not carried over: ttl 5: names of the cluster have 30 " +
				"s\nline 5: not carried over: fallthrough : names of the cluster's domain are answered here only; " +
				"addresses outside of the cluster are forwarded anyway\n"},
		{"options of forward", ". {\n forward . 10.0.0.1 {\n  except corp.example\n  force_tcp\n }\n}",
			"dns:\n  upstreams:\n  - 10.0.0.1:53\nline 3: not carried over: forward: except corp.example\nline 4: " +
				"not carried over: forward: force_tcp\n"},
		{"servers by name", ". {\n forward . dns.example /etc/other\n}", "{}\nline 2: not carried over: forward to " +
			"dns.example: servers must be IP addresses, by UDP and TCP or tls://\nline 2: not carried over: " +
			"forward to the servers of /etc/other: name them\n"},
		{"directives that do what we do not", ". {\n rewrite name a.example b.example\n log\n nonsense x\n whoami\n " +
			"import /etc/coredns/custom/*.override\n}",
			"{}\nline 2: not carried over: rewrite: use an ExternalName Service or `dns.hosts`\nline 3: not " +
				"carried over: log: not every query is logged; `wayleave dns log` shows those of a pod or a " +
				"name\nline 4: not carried over: nonsense: CoreDNS has no such directive of its own\nline 5: not " +
				"carried over: whoami\nline 6: not carried over: import /etc/coredns/custom/*.override: other files " +
				"are not read; translate them one by one\n"},
		{"a block of another protocol", "tls://. {\n forward . 10.0.0.1\n}", "{}\nline 1: not carried over: " +
			"tls://.: queries are served by UDP and TCP\nline 1: not carried over: server block tls://. with all its " +
			"directives\n"},
		{"snippets", "(up) {\n forward . 10.0.0.1 # ours\n}\n. {\n import up\n}",
			"dns:\n  upstreams:\n  - 10.0.0.1:53\n"},
		{"quotes", ". {\n forward . \"10.0.0.1\"\n}", "dns:\n  upstreams:\n  - 10.0.0.1:53\n"},
		{"autopath", ". {\n autopath @kubernetes\n}", "dns:\n  autopath: true\n"},
		{"nothing", "", "error: not a Corefile: it has no server block"},
		{"a brace too few", ". {\n errors", "error: not a Corefile: line 1: a { has no end"},
		{"a brace too many", ". {\n}\n}", "error: not a Corefile: line 3: a } without a {"},
		{"a quote too few", ". {\n forward \"x\n}", "error: not a Corefile: line 2: a quote has no end"},
		{"snippets in circles", "(a) {\n import b\n}\n(b) {\n import a\n}\n. {\n import a\n}",
			"error: not a Corefile: line 5: import a: snippets import each other"},
	} {
		if got := translated(t, tc.in, allBuilt, false); got != tc.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tc.what, got, tc.want)
		}
	}
}

// TestNoDirectiveIsSilent: each of CoreDNS's directives, with each of its options, becomes a setting or is spoken of
// by its line. What has to become of it stands behind every line of the file.
func TestNoDirectiveIsSilent(t *testing.T) {
	raw, err := os.ReadFile("testdata/every-directive.Corefile")
	if err != nil {
		t.Fatal(err)
	}
	seen, marks := map[string]bool{}, 0
	for text := range strings.SplitSeq(string(raw), "\n}\n") {
		if strings.TrimSpace(text) == "" {
			continue
		}
		text += "\n}\n"
		if first, rest, ok := strings.Cut(text, "\n"); ok && strings.HasPrefix(first, "import") {
			marks += eachLine(t, ". {\n}\n"+first+"\n", seen)
			text = rest
		}
		marks += eachLine(t, text, seen)
	}
	if marks < 250 {
		t.Errorf("%d lines", marks)
	}
	for _, f := range plugins() {
		if !seen[f.name] {
			t.Errorf("the file does not have %s", f.name)
		}
		delete(seen, f.name)
	}
	for name := range seen {
		t.Errorf("the table does not have %s", name)
	}
}

// eachLine checks one server block, and notes the directives that are in it.
func eachLine(t *testing.T, text string, seen map[string]bool) (marks int) {
	t.Helper()
	out, notes, err := Translate(text, allBuilt)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		words, mark, ok := strings.Cut(line, " # ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		marks++
		if f := strings.Fields(words); strings.HasPrefix(words, "    ") && !strings.HasPrefix(words, "     ") &&
			!strings.HasPrefix(f[0], "{") {
			seen[f[0]] = true
		}
		lost, noted := false, false
		for _, n := range notes {
			if n.Line == i+1 {
				lost, noted = lost || n.Lost, noted || !n.Lost
			}
		}
		changes := false
		if mark == "set" { // without the line the settings are others
			without := slices.Clone(lines)
			if without[i] = ""; strings.HasSuffix(words, "{") {
				without[i] = "whoami {"
			}
			less, _, err := Translate(strings.Join(without, "\n"), allBuilt)
			changes = err == nil && string(less) != string(out)
		}
		if right := map[string]bool{"set": changes && !lost, "note": noted && !lost, "same": !lost,
			"lost": lost}[mark]; !right {
			t.Errorf("%q: lost %v, noted %v, a setting %v; it is to be %s\n%s%v", strings.TrimSpace(words), lost, noted,
				changes, mark, out, notes)
		}
	}
	return marks
}

// TestOddCorefiles: shapes that CoreDNS reads and that lose nothing here.
func TestOddCorefiles(t *testing.T) {
	const up = "dns:\n  upstreams:\n  - 10.0.0.1:53\n"
	for what, tc := range map[string]struct{ in, want string }{
		"a hosts file without a path": {
			". {\n hosts extra.hosts corp.test {\n  192.0.2.30 printer.corp.test\n  fallthrough\n }\n}",
			"dns:\n  hosts:\n    printer.corp.test:\n    - 192.0.2.30\nline 2: not carried over: hosts extra.hosts " +
				"corp.test: files are not read; write the lines of extra.hosts into the Corefile\n"},
		"import of files outside of the blocks": {"import ../custom/*.server\n. {\n forward . 10.0.0.1\n}",
			up + "line 1: not carried over: import ../custom/*.server: other files are not read; translate " +
				"them one by one\n"},
		"nothing but an import": {"import a",
			"{}\nline 1: not carried over: import a: other files are not read; translate them one by one\n"},
		"import of two things": {". {\n import a b\n forward . 10.0.0.1\n}",
			up + "line 2: not carried over: import a b: other files are not read; translate them one by one\n"},
		"a snippet of whole blocks": {"(blocks) {\n . {\n  forward . 10.0.0.1\n }\n}\nimport blocks", up},
		"a snippet in a directive": {
			"(options) {\n except a.example\n}\n. {\n forward . 10.0.0.1 {\n  import options\n }\n}",
			up + "line 2: not carried over: forward: except a.example\n"},
		"no braces": {".:53\nforward . 10.0.0.1\nlog\n",
			up + "line 3: not carried over: log: not every query is logged; `wayleave dns log` shows those of a " +
				"pod or a name\n"},
		"a brace in its own line": {".:53\n{\n forward . 10.0.0.1\n}", up},
		"a comment behind a word": {". {\n forward . 10.0.0.1#ours\n}", up},
		"a quote over lines": {
			". {\n template IN A {\n  answer \"a\n  \\\"b\\\"\"\n }\n forward . 10.0.0.1\n}",
			up + "line 2: not carried over: template: `dns.hosts` has single names\nline 3: not carried over: " +
				"template: answer a\n  \"b\"\n"},
		"a variable": {". {\n forward . {$UP}\n}", "{}\nline 2: not carried over: {$UP}: " +
			"variables of CoreDNS's environment are not known here\nline 2: not carried over: forward to {$UP}: " +
			"servers must be IP addresses, by UDP and TCP or tls://\n"},
		"networks become reverse zones": {
			"10.2.0.0/16 2001:db8::/32 10.0.0.0/15 {\n forward . 10.0.0.53\n}\n. {\n forward 192.0.2.0/31 " +
				"10.0.0.53\n}",
			"dns:\n  stubDomains:\n" + stubs("0.2.0.192.in-addr.arpa", "0.10.in-addr.arpa",
				"1.2.0.192.in-addr.arpa", "1.10.in-addr.arpa", "2.10.in-addr.arpa", "8.b.d.0.1.0.0.2.ip6.arpa")},
		"a network with a port": {"192.0.2.0/24:53 {\n forward . 10.0.0.53\n}",
			"dns:\n  stubDomains:\n" + stubs("2.0.192.in-addr.arpa")},
		"a network that is none": {"10.0.0.0/33 {\n forward . 10.0.0.53\n}\n. {\n forward . 10.0.0.1\n}",
			up + "line 1: not carried over: 10.0.0.0/33: it is neither the name of a zone nor a network\nline 1: " +
				"not carried over: server block 10.0.0.0/33 with all its directives\n"},
		"zones that are no names harm no other": {
			"*.a.test {\n forward . 10.0.0.1\n}\n{$ZONE} {\n forward . 10.0.0.1\n}\n. {\n kubernetes {$DOMAIN}\n " +
				"forward . 10.0.0.1\n}",
			"dns:\n  pods: disabled\n  upstreams:\n  - 10.0.0.1:53\nline 1: not carried over: *.a.test: it is " +
				"neither the name of a zone nor a network\nline 1: not carried over: server block *.a.test with all " +
				"its directives\nline 4: not carried over: {$ZONE}: variables of CoreDNS's environment are not known " +
				"here\nline 4: not carried over: {$ZONE}: it is neither the name of a zone nor a network\nline 4: " +
				"not carried over: server block {$ZONE} with all its directives\nline 8: not carried over: " +
				"{$DOMAIN}: variables of CoreDNS's environment are not known here\nline 8: not carried over: " +
				"kubernetes {$DOMAIN}: it is not the name of a zone\n"},
		"one zone at two ports": {".:53 .:1053 {\n forward . 10.0.0.1\n}", up},
		"a zone of two blocks": {". {\n forward . 10.0.0.1\n}\n.:1053 {\n forward . 10.0.0.2\n}",
			up + "line 4: not carried over: a second server block for \".\"\nline 4: not carried over: server block " +
				".:1053 with all its directives\n"},
		"proxy of CoreDNS before 1.5": {". {\n proxy . 10.0.0.1\n}", up},
		"upstream of CoreDNS before 1.7": {". {\n kubernetes cluster.local {\n  pods insecure\n  upstream\n }\n}",
			"clusterDomain: cluster.local\ndns:\n  pods: insecure\n"},
		"pods that CoreDNS does not answer for": {". {\n kubernetes cluster.local\n}",
			"clusterDomain: cluster.local\ndns:\n  pods: disabled\n"},
		"hosts that hide all else": {"corp.test {\n hosts {\n  192.0.2.1 a.corp.test b.test\n }\n}",
			"dns:\n  hosts:\n    a.corp.test:\n    - 192.0.2.1\nline 2: not carried over: hosts without " +
				"fallthrough: names that it lacks are forwarded\nline 3: not carried over: hosts: " +
				"b.test is in none of the zones of hosts\n"},
	} {
		if got := translated(t, tc.in, allBuilt, false); got != tc.want {
			t.Errorf("%s: got\n%s\nwant\n%s", what, got, tc.want)
		}
	}
}

// stubs are the settings of domains that 10.0.0.53 has.
func stubs(zones ...string) string {
	var b strings.Builder
	for _, z := range zones {
		b.WriteString("    " + z + ":\n    - 10.0.0.53:53\n")
	}
	return b.String()
}

// Other files that a Corefile imports are given by their names, as the keys of k3s's ConfigMap coredns-custom.
func TestImportedFiles(t *testing.T) {
	files := map[string]string{"a.server": "corp.test {\n forward . 10.1.0.53\n}\n",
		"log.override": "log\nnonsense\n", "z.override": "forward . 10.0.0.1", "other": "x {\n}"}
	out, notes, err := TranslateWith(". {\n errors\n import /etc/coredns/custom/*.override\n}\n"+
		"import /etc/coredns/custom/*.server\nimport absent/none\n", files, allBuilt)
	want := "dns:\n  stubDomains:\n    corp.test:\n    - 10.1.0.53:53\n  upstreams:\n  - 10.0.0.1:53\n"
	if err != nil || string(out) != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, out, want)
	}
	var said []string
	for _, n := range notes {
		if n.Lost {
			said = append(said, n.String())
		}
	}
	if want := []string{"line 3: not carried over: log: not every query is logged; `wayleave dns log` shows those " +
		"of a pod or a name", "line 3: not carried over: nonsense: CoreDNS has no such directive of its own",
		"line 6: not carried over: import absent/none: other files are not read; translate them one by " +
			"one"}; !slices.Equal(said, want) {
		t.Errorf("said %q\nwant %q", said, want)
	}
	files["b.override"] = "{"
	if _, _, err := TranslateWith(". {\n import *.override\n}", files, allBuilt); err == nil ||
		!strings.Contains(err.Error(), "b.override: line 1") {
		t.Errorf("a file that is none: %v", err)
	}
	if _, _, err := TranslateWith(". {\n import x\n}", map[string]string{"x": "import x"}, allBuilt); err == nil ||
		!strings.Contains(err.Error(), "import each other") {
		t.Errorf("a file that imports itself: %v", err)
	}
}

func TestTheTableIsInTheDocs(t *testing.T) {
	raw, err := os.ReadFile("../../docs/dns.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(raw), Table()) {
		t.Errorf("docs/dns.md does not have the table of directives:\n%s", Table())
	}
}

// FuzzTranslate: no bytes break the translation.
func FuzzTranslate(f *testing.F) {
	f.Add(kubeadm)
	f.Add("(a) {\n import a\n}\n. {\n import a\n hosts {\n 1.1.1.1 x\n}\ncache 5 {\n success 1 2 3\n}\nforward . " +
		"tls://1.1.1.1\n}")
	f.Fuzz(func(_ *testing.T, text string) { _, _, _ = Translate(text, allBuilt) })
}
