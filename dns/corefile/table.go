package corefile

import (
	"fmt"
	"strings"
)

// fate is what becomes of a directive.
type fate struct {
	name string
	// how is carried, built in or not.
	how string
	// why is for people: what it becomes, or what to do instead.
	why string
	// args and options are what a directive that is built in may have without asking for more than that.
	args    string
	anyArgs bool
	options []string
}

// What becomes of a directive.
const (
	carried = "becomes settings"
	builtIn = "built in"
	not     = "not carried over"
)

// fates is every plugin that CoreDNS comes with.
func fates() []fate {
	return []fate{
		{name: "kubernetes", how: carried, why: "the zone is `clusterDomain`; further zones are `dns.extraDomains`, " +
			"`pods` is `dns.pods`; options for an API server of its own, `namespaces`, `labels` and a `ttl` other " +
			"than 30 are not carried over; without `pods`, `dns.pods` is `disabled`"},
		{name: "forward", how: carried, why: "`dns.upstreams`, or `dns.stubDomains` for a domain; `tls://` with " +
			"`tls_servername` is `tls://IP@NAME`; `except`, `force_tcp` and client certificates are not carried over"},
		{name: "cache", how: carried, why: "`dns.cacheTTL`, `dns.negativeTTL`, `dns.staleFor`; capacities are " +
			"`dns.cacheMiB`, `prefetch` is built in; `disable` and `keepttl` are not carried over"},
		{name: "hosts", how: carried, why: "lines of addresses are `dns.hosts`; files, a `ttl` other than 30 and " +
			"the lack of `fallthrough` are not carried over"},
		{name: "import", how: carried, why: "snippets of the same file; other files are not read"},
		{name: "errors", how: builtIn, why: "failures are logged and counted"},
		{name: "health", how: builtIn, why: "the container has probes", anyArgs: true, options: []string{"lameduck"}},
		{name: "ready", how: builtIn, why: "the container has probes", anyArgs: true, options: []string{"monitor"}},
		{name: "prometheus", how: builtIn, why: "metrics have CoreDNS's names, on the unix socket of the dns container",
			anyArgs: true},
		{name: "loop", how: builtIn, why: "the cluster DNS is never asked by itself"},
		{name: "reload", how: builtIn, why: "a restart reads the settings and loses no query", anyArgs: true},
		{name: "loadbalance", how: builtIn, why: "addresses are told in turning order", args: "round_robin"},
		{name: "bufsize", how: builtIn, why: "1232 bytes", args: "1232"},
		{name: "bind", how: builtIn, why: "the address of kube-dns on every node"},
		{name: "cancel", how: builtIn, why: "a query ends after 4 s"},
		{name: "timeouts", how: builtIn, why: "idle TCP connections end after 10 s"},
		{name: "multisocket", how: builtIn, why: "all cores answer", anyArgs: true},
		{name: "minimal", how: builtIn, why: "answers of Services have what is asked"},
		{name: "shed", how: builtIn, why: "queries beyond the bounds get SERVFAIL"},
		{name: "log", how: not, why: "not every query is logged; `wayleave dns log` shows those of a pod or a name"},
		{name: "autopath", how: carried, why: "the setting `dns.autopath`"},
		{name: "acl", how: not, why: "only pods and nodes are answered"},
		{name: "any", how: not, why: ""},
		{name: "auto", how: not,
			why: "zone files are not served: forward the zone to a server that has it (`dns.stubDomains`)"},
		{name: "azure", how: not, why: "forward the zone (`dns.stubDomains`)"},
		{name: "chaos", how: not, why: ""},
		{name: "clouddns", how: not, why: "forward the zone (`dns.stubDomains`)"},
		{name: "debug", how: not, why: "`logLevel: debug` is the agent's"},
		{name: "dns64", how: not, why: ""},
		{name: "dnssec", how: not, why: "nothing is signed"},
		{name: "dnstap", how: not, why: ""},
		{name: "erratic", how: not, why: ""},
		{name: "etcd", how: not, why: "forward the zone (`dns.stubDomains`)"},
		{name: "file", how: not,
			why: "zone files are not served: forward the zone to a server that has it (`dns.stubDomains`)"},
		{name: "geoip", how: not, why: ""},
		{name: "grpc", how: not, why: "servers are asked by UDP, TCP and TLS"},
		{name: "grpc_server", how: not, why: "queries come by UDP and TCP"},
		{name: "header", how: not, why: ""},
		{name: "https", how: not, why: "queries come by UDP and TCP"},
		{name: "https3", how: not, why: "queries come by UDP and TCP"},
		{name: "k8s_external", how: not, why: "names of load balancers' addresses are for a DNS server outside"},
		{name: "local", how: not, why: ""},
		{name: "metadata", how: not, why: ""},
		{name: "nomad", how: not, why: "forward the zone (`dns.stubDomains`)"},
		{name: "nsid", how: not, why: ""},
		{name: "on", how: not, why: "nothing is executed"},
		{name: "pprof", how: not, why: ""},
		{name: "proxyproto", how: not, why: "the kernel shows the client's address"},
		{name: "quic", how: not, why: "queries come by UDP and TCP"},
		{name: "rewrite", how: not, why: "an ExternalName Service or `dns.hosts` may do it"},
		{name: "root", how: not, why: "no files are read"},
		{name: "route53", how: not, why: "forward the zone (`dns.stubDomains`)"},
		{name: "secondary", how: not, why: "forward the zone (`dns.stubDomains`)"},
		{name: "sign", how: not, why: "nothing is signed"},
		{name: "template", how: not, why: "`dns.hosts` has single names"},
		{name: "tls", how: not, why: "queries come by UDP and TCP"},
		{name: "trace", how: not, why: ""},
		{name: "transfer", how: not, why: "zones are not transferred"},
		{name: "tsig", how: not, why: ""},
		{name: "view", how: not, why: ""},
		{name: "whoami", how: not, why: ""},
	}
}

// Table is the table of directives for docs/dns.md.
func Table() string {
	var b strings.Builder
	b.WriteString("| directive | | |\n|---|---|---|\n")
	for _, f := range fates() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.name, f.how, f.why)
	}
	return b.String()
}
