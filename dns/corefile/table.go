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
		{"kubernetes", carried, "the zone is `clusterDomain`; further zones are `dns.extraDomains`, `pods` is `dns.pods`; options for an API server of its own, `namespaces`, `labels` and a `ttl` other than 30 are not carried over"},
		{"forward", carried, "`dns.upstreams`, or `dns.stubDomains` for a domain; `tls://` with `tls_servername` is `tls://IP@NAME`; `except`, `force_tcp` and client certificates are not carried over"},
		{"cache", carried, "`dns.cacheTTL`, `dns.negativeTTL`, `dns.staleFor`; capacities are `dns.cacheMiB`, `prefetch` is built in; `disable` and `keepttl` are not carried over"},
		{"hosts", carried, "lines of addresses are `dns.hosts`; files are not carried over"},
		{"import", carried, "snippets of the same file; other files are not read"},
		{"errors", builtIn, "failures are logged and counted"},
		{"health", builtIn, "the container has probes"},
		{"ready", builtIn, "the container has probes"},
		{"prometheus", builtIn, "metrics have CoreDNS's names, at another address"},
		{"loop", builtIn, "the cluster DNS is never asked by itself"},
		{"reload", builtIn, "a restart reads the settings and loses no query"},
		{"loadbalance", builtIn, "addresses are told in turning order"},
		{"bufsize", builtIn, "1232 bytes"},
		{"bind", builtIn, "the address of kube-dns on every node"},
		{"cancel", builtIn, "a query ends after 4 s"},
		{"timeouts", builtIn, "idle TCP connections end after 10 s"},
		{"multisocket", builtIn, "all cores answer"},
		{"minimal", builtIn, "answers of Services have what is asked"},
		{"log", not, "not every query is logged; `wayleave dns log` shows those of a pod or a name"},
		{"autopath", carried, "the setting `dns.autopath`"},
		{"acl", not, "only pods and nodes are answered"},
		{"any", not, ""},
		{"auto", not, "zone files are not served: forward the zone to a server that has it (`dns.stubDomains`)"},
		{"azure", not, "forward the zone (`dns.stubDomains`)"},
		{"chaos", not, ""},
		{"clouddns", not, "forward the zone (`dns.stubDomains`)"},
		{"debug", not, "`logLevel: debug` is the agent's"},
		{"dns64", not, ""},
		{"dnssec", not, "nothing is signed"},
		{"dnstap", not, ""},
		{"erratic", not, ""},
		{"etcd", not, "forward the zone (`dns.stubDomains`)"},
		{"file", not, "zone files are not served: forward the zone to a server that has it (`dns.stubDomains`)"},
		{"geoip", not, ""},
		{"grpc", not, "servers are asked by UDP, TCP and TLS"},
		{"grpc_server", not, "queries come by UDP and TCP"},
		{"header", not, ""},
		{"https", not, "queries come by UDP and TCP"},
		{"https3", not, "queries come by UDP and TCP"},
		{"k8s_external", not, "names of load balancers' addresses are for a DNS server outside"},
		{"local", not, ""},
		{"metadata", not, ""},
		{"nomad", not, "forward the zone (`dns.stubDomains`)"},
		{"nsid", not, ""},
		{"on", not, "nothing is executed"},
		{"pprof", not, ""},
		{"quic", not, "queries come by UDP and TCP"},
		{"rewrite", not, "an ExternalName Service or `dns.hosts` may do it"},
		{"root", not, "no files are read"},
		{"route53", not, "forward the zone (`dns.stubDomains`)"},
		{"secondary", not, "forward the zone (`dns.stubDomains`)"},
		{"sign", not, "nothing is signed"},
		{"template", not, "`dns.hosts` has single names"},
		{"tls", not, "queries come by UDP and TCP"},
		{"trace", not, ""},
		{"transfer", not, "zones are not transferred"},
		{"tsig", not, ""},
		{"view", not, ""},
		{"whoami", not, ""},
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
