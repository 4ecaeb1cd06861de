package corefile

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// zonesOf returns the domains that a server block for networks becomes.
func zonesOf(t *testing.T, networks string) []string {
	t.Helper()
	out, _, err := Translate(networks+" {\n forward . 10.0.0.53\n}\n", allBuilt)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		DNS struct{ StubDomains map[string][]string }
	}
	if err := yaml.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(got.DNS.StubDomains))
}

// Networks of public reports become the zones that those expect: exactly the addresses of the network.
func TestReportsOfReverseZones(t *testing.T) {
	for _, tc := range []struct {
		report, networks string
		count            int
		some             []string
	}{
		{"coredns#827", "10.0.0.0/25", 128, []string{"0.0.0.10.in-addr.arpa", "127.0.0.10.in-addr.arpa"}},
		{"coredns#838", "10.0.0.0/24 2003::/64", 2,
			[]string{"0.0.10.in-addr.arpa", "0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.2.ip6.arpa"}},
		{"coredns#2252", "172.16.0.0/12", 16, []string{"16.172.in-addr.arpa", "31.172.in-addr.arpa"}},
		{"coredns#2252", "10.6.84.0/26 10.6.84.128/26", 128, []string{"0.84.6.10.in-addr.arpa",
			"63.84.6.10.in-addr.arpa", "128.84.6.10.in-addr.arpa", "191.84.6.10.in-addr.arpa"}},
		{"coredns#2779", "10.129.60.0/22", 4, []string{"60.129.10.in-addr.arpa", "61.129.10.in-addr.arpa",
			"62.129.10.in-addr.arpa", "63.129.10.in-addr.arpa"}},
		{"coredns#3123", "192.168.0.0/17 192.168.128.0/20", 128 + 16, []string{"127.168.192.in-addr.arpa",
			"128.168.192.in-addr.arpa", "143.168.192.in-addr.arpa"}},
		{"coredns#3808", "172.28.224.0/22 172.28.0.0/19", 4 + 32, []string{"227.28.172.in-addr.arpa",
			"31.28.172.in-addr.arpa"}},
		{"coredns#4656", "2001:db8::/115", 2, []string{
			"0." + strings.Repeat("0.", 20) + "8.b.d.0.1.0.0.2.ip6.arpa",
			"1." + strings.Repeat("0.", 20) + "8.b.d.0.1.0.0.2.ip6.arpa"}},
		{"all addresses", "0.0.0.0/0 ::/0", 2, []string{"in-addr.arpa", "ip6.arpa"}},
	} {
		got := zonesOf(t, tc.networks)
		if len(got) != tc.count {
			t.Errorf("%s: %s became %d zones, want %d: %.300q", tc.report, tc.networks, len(got), tc.count, got)
		}
		for _, z := range tc.some {
			if !slices.Contains(got, z) {
				t.Errorf("%s: %s has no zone %s: %.300q", tc.report, tc.networks, z, got)
			}
		}
	}
}

// Corefiles of public reports.
func TestReportsOfCorefiles(t *testing.T) {
	// k3s#462: k3s's Corefile of 2019.
	got := translated(t, ".:53 {\n errors\n health\n rewrite name regex [a-z.]+\\.dev0\\.be\\.test "+
		"traefik.kube-system.svc.cluster.local\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n  pods insecure\n  "+
		"upstream\n  fallthrough in-addr.arpa ip6.arpa\n }\n prometheus :9153\n proxy . /etc/resolv.conf\n cache 30\n "+
		"loop\n reload\n loadbalance\n}\n", allBuilt, false)
	if want := "clusterDomain: cluster.local\ndns:\n  cacheTTL: 30s\n  negativeTTL: 30s\n  pods: insecure\nline 4: " +
		"not carried over: rewrite: use an ExternalName Service or `dns.hosts`\n"; got != want {
		t.Errorf("k3s#462: got\n%s\nwant\n%s", got, want)
	}
	// k3s#7640 and #7641: keys that a block imports, and servers of their own.
	out, notes, err := TranslateWith(".:53 {\n kubernetes cluster.local {\n  pods insecure\n }\n forward . 10.0.0.1\n "+
		"import /etc/coredns/custom/*.override\n}\nimport /etc/coredns/custom/*.server\n", map[string]string{
		"log.override": "log\n", "custom.server": "why.test {\n  forward . 127.0.0.1\n}\n", "NodeHosts": "x y\n"},
		allBuilt)
	if want := "clusterDomain: cluster.local\ndns:\n  pods: insecure\n  stubDomains:\n    why.test:\n    " +
		"- 127.0.0.1:53\n  upstreams:\n  - 10.0.0.1:53\n"; err != nil || string(out) != want || len(notes) != 1 ||
		notes[0].Line != 6 {
		t.Errorf("k3s#7640: %v %v, got\n%s\nwant\n%s", err, notes, out, want)
	}
	// coredns#3350: a server for each of two domains, in one block and in two.
	const corp = "dns:\n  stubDomains:\n    dev.lan.test:\n    - 192.168.1.10:53\n    - 192.168.1.11:53\n    " +
		"intra.lan.test:\n    - 172.16.10.10:53\n"
	for _, in := range []string{
		":53 {\n proxy dev.lan.test 192.168.1.10 192.168.1.11\n proxy intra.lan.test 172.16.10.10\n}\n",
		"dev.lan.test:53 {\n forward . 192.168.1.10 192.168.1.11\n}\nintra.lan.test:53 {\n forward . 172.16.10.10\n}\n",
	} {
		if got := translated(t, in, allBuilt, false); got != corp {
			t.Errorf("coredns#3350: %s became\n%s\nwant\n%s", in, got, corp)
		}
	}
	// coredns#2265: one name for all servers by TLS, beside one without.
	got = translated(t, ". {\n forward . tls://1.1.1.1 8.8.8.8 {\n  tls_servername cloudflare-dns.com\n }\n}\n",
		allBuilt, false)
	if want := "dns:\n  upstreams:\n  - tls://1.1.1.1:853@cloudflare-dns.com\n  - 8.8.8.8:53\n"; got != want {
		t.Errorf("coredns#2265: got\n%s\nwant\n%s", got, want)
	}
	// coredns#6449, #7118: servers in their order, and what asks the next one after NXDOMAIN.
	got = translated(t, ". {\n forward . 172.16.210.130 172.16.102.245 {\n  policy sequential\n }\n alternate "+
		"NXDOMAIN,SERVFAIL . 8.8.8.8\n}\n", allBuilt, false)
	if want := "dns:\n  upstreams:\n  - 172.16.210.130:53\n  - 172.16.102.245:53\nline 5: not carried over: " +
		"alternate: CoreDNS has no such directive of its own\n"; got != want {
		t.Errorf("coredns#6449: got\n%s\nwant\n%s", got, want)
	}
}
