package corefile

import (
	"fmt"
	"strings"
)

// plugin is a plugin of CoreDNS, with the result for its directive.
type plugin struct {
	name string
	// state is carried, builtIn or lost.
	state string
	// note tells people what it becomes, or what to do instead.
	note string
	// args and options are those that need no further setting, for a directive that is built in.
	args    string
	anyArgs bool
	options []string
}

// Results for a directive.
const (
	carried = "becomes settings"
	builtIn = "built in"
	lost    = "not carried over"
)

// plugins lists every plugin that CoreDNS includes.
func plugins() []plugin {
	return []plugin{
		{name: "kubernetes", state: carried,
			note: "the zone is `clusterDomain`; further zones are `dns.extraDomains`, " +
				"`pods` is `dns.pods`; options for an API server of its own, `namespaces`, `labels` and a `ttl` " +
				"other than 30 are not carried over; without `pods`, `dns.pods` is `disabled`"},
		{name: "forward", state: carried, note: "`dns.upstreams`, or `dns.stubDomains` for a domain; `tls://` with " +
			"`tls_servername` is `tls://IP@NAME`; `except`, `force_tcp` and client certificates are not carried over"},
		{name: "proxy", state: carried, note: "as `forward`; CoreDNS before 1.5 had it"},
		{name: "cache", state: carried, note: "`dns.cacheTTL`, `dns.negativeTTL`, `dns.staleFor`; capacities are " +
			"`dns.cacheMiB`, `prefetch` is built in; `disable` and `keepttl` are not carried over"},
		{name: "hosts", state: carried, note: "lines of addresses are `dns.hosts`; files, a `ttl` other than 30 and " +
			"the lack of `fallthrough` are not carried over"},
		{name: "import", state: carried,
			note: "snippets of the same file, and keys of the ConfigMaps that are given; " +
				"other files are not read"},
		{name: "errors", state: builtIn, note: "failures are logged and counted"},
		{name: "health", state: builtIn, note: "the container has probes", anyArgs: true,
			options: []string{"lameduck"}},
		{name: "ready", state: builtIn, note: "the container has probes", anyArgs: true, options: []string{"monitor"}},
		{name: "prometheus", state: builtIn, anyArgs: true,
			note: "metrics have CoreDNS's names, at the node's port for metrics (`metrics.port`)"},
		{name: "loop", state: builtIn, note: "the cluster DNS never forwards to itself"},
		{name: "reload", state: builtIn, note: "a restart reads the settings and loses no query", anyArgs: true},
		{name: "loadbalance", state: builtIn, note: "addresses are rotated", args: "round_robin"},
		{name: "bufsize", state: builtIn, note: "1232 bytes", args: "1232"},
		{name: "bind", state: builtIn, note: "the address of kube-dns on every node"},
		{name: "cancel", state: builtIn, note: "a query ends after 4 s"},
		{name: "timeouts", state: builtIn, note: "idle TCP connections end after 10 s"},
		{name: "multisocket", state: builtIn, note: "all cores answer", anyArgs: true},
		{name: "minimal", state: builtIn, note: "answers about Services contain only what was asked"},
		{name: "shed", state: builtIn, note: "queries beyond the bounds get SERVFAIL"},
		{name: "log", state: lost,
			note: "not every query is logged; `wayleave dns log` shows those of a pod or a name"},
		{name: "autopath", state: carried, note: "the setting `dns.autopath`"},
		{name: "acl", state: lost, note: "only pods and nodes are answered"},
		{name: "any", state: lost, note: ""},
		{name: "auto", state: lost,
			note: "zone files are not served: forward the zone to a server that has it (`dns.stubDomains`)"},
		{name: "azure", state: lost, note: "forward the zone (`dns.stubDomains`)"},
		{name: "chaos", state: lost, note: ""},
		{name: "clouddns", state: lost, note: "forward the zone (`dns.stubDomains`)"},
		{name: "debug", state: lost, note: "use `logLevel: debug`"},
		{name: "dns64", state: lost, note: ""},
		{name: "dnssec", state: lost, note: "nothing is signed"},
		{name: "dnstap", state: lost, note: ""},
		{name: "erratic", state: lost, note: ""},
		{name: "etcd", state: lost, note: "forward the zone (`dns.stubDomains`)"},
		{name: "file", state: lost,
			note: "zone files are not served: forward the zone to a server that has it (`dns.stubDomains`)"},
		{name: "geoip", state: lost, note: ""},
		{name: "grpc", state: lost, note: "upstream servers are queried by UDP, TCP and TLS"},
		{name: "grpc_server", state: lost, note: "queries are served by UDP and TCP"},
		{name: "header", state: lost, note: ""},
		{name: "https", state: lost, note: "queries are served by UDP and TCP"},
		{name: "https3", state: lost, note: "queries are served by UDP and TCP"},
		{name: "k8s_external", state: lost,
			note: "names of load balancers' addresses belong on an external DNS server"},
		{name: "local", state: lost, note: ""},
		{name: "metadata", state: lost, note: ""},
		{name: "nomad", state: lost, note: "forward the zone (`dns.stubDomains`)"},
		{name: "nsid", state: lost, note: ""},
		{name: "on", state: lost, note: "nothing is executed"},
		{name: "pprof", state: lost, note: ""},
		{name: "proxyproto", state: lost, note: "the kernel shows the client's address"},
		{name: "quic", state: lost, note: "queries are served by UDP and TCP"},
		{name: "rewrite", state: lost, note: "use an ExternalName Service or `dns.hosts`"},
		{name: "root", state: lost, note: "no files are read"},
		{name: "route53", state: lost, note: "forward the zone (`dns.stubDomains`)"},
		{name: "secondary", state: lost, note: "forward the zone (`dns.stubDomains`)"},
		{name: "sign", state: lost, note: "nothing is signed"},
		{name: "template", state: lost, note: "`dns.hosts` has single names"},
		{name: "tls", state: lost, note: "queries are served by UDP and TCP"},
		{name: "trace", state: lost, note: ""},
		{name: "transfer", state: lost, note: "zones are not transferred"},
		{name: "tsig", state: lost, note: ""},
		{name: "view", state: lost, note: ""},
		{name: "whoami", state: lost, note: ""},
	}
}

// Table returns the table of directives for docs/dns.md.
func Table() string {
	var b strings.Builder
	b.WriteString("| directive | | |\n|---|---|---|\n")
	for _, f := range plugins() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.name, f.state, f.note)
	}
	return b.String()
}
