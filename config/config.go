// Package config reads the settings of Wayleave. Every setting is one row of a
// table: its key, its default, its check, and the words that explain it in the
// ConfigMap. A key that is not in the table is an error, so that a typing error
// or a feature that is not built cannot be taken for something that works.
package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/model"
)

// Version is the version of the keys of the settings. It rises by one with a release of Wayleave that adds, removes or
// redefines keys. A file with a higher settingsVersion may have keys that are unknown here: they are reported and not
// used, so that a rollback starts. Unknown keys of other files are errors.
const Version = 1

// versionKey is where a settings file has its version.
const versionKey = "settingsVersion"

// Config is the checked settings. It is a value: copies are independent but for
// the slices and maps, which nobody changes.
type Config struct {
	APIServer     string
	ClusterDomain string
	ClusterDNS    []netip.Addr
	LogLevel      slog.Level
	Mode          string
	Routing       string
	Encryption    string
	PodNetwork    PodNetwork
	Service       Service
	Iptables      Iptables
	IPVS          IPVS
	DNS           DNS
	LoadBalancer  LoadBalancer
	NetworkPolicy NetworkPolicy
	Ingress       Ingress
	// Unused are settings that have no effect, a line each: fields of a KubeProxyConfiguration, and keys of a file
	// of a later version.
	Unused []string
}

// PodNetwork is the settings of the feature of that name.
type PodNetwork struct {
	Enabled    bool
	Masquerade bool
	CoolDown   time.Duration
	ProbeEvery time.Duration
	// VXLANPort is the UDP port of VXLAN, the same on all nodes.
	VXLANPort int
}

// Service is the settings of the feature of that name.
type Service struct {
	Enabled bool
	// NodePortAddresses are empty for the node's internal addresses alone. NodePortPrimary
	// adds those to others.
	NodePortAddresses []netip.Prefix
	NodePortPrimary   bool
	// ExternalIPs serves spec.externalIPs.
	ExternalIPs bool
	// Tracking are limits of the node's connection tracking.
	Tracking Tracking
}

// Tracking is the settings service.conntrack. A zero leaves the node's own value.
type Tracking struct {
	MaxPerCore, Min                        int
	Established, CloseWait, UDP, UDPStream time.Duration
	Liberal                                bool
}

// Iptables is the settings of the mode of that name.
type Iptables struct {
	// Flavour is auto, nft or legacy.
	Flavour string
}

// IPVS is the settings of the mode of that name.
type IPVS struct {
	Scheduler string
	Drain     time.Duration
}

// DNS is the settings of the feature of that name.
type DNS struct {
	Enabled bool
	// Upstreams are empty for those of the node's resolv.conf.
	Upstreams []model.Nameserver
	// StubDomains and Hosts have names in lower case with a final dot.
	StubDomains map[string][]model.Nameserver
	Hosts       map[string][]netip.Addr
	// PlainLetters are servers of Upstreams or StubDomains that are asked in small letters.
	PlainLetters []model.Nameserver
	// TLSCA is PEM, of authorities beside the public ones.
	TLSCA string
	// CacheMiB is 0 for no cache.
	CacheMiB              int
	CacheTTL, NegativeTTL time.Duration
	// StaleFor is how long past its life a reply is told when no server answers.
	StaleFor time.Duration
	// Pods is how the names of pods are answered: disabled, insecure or verified.
	Pods string
	// ExtraDomains are domains of the cluster beside its ClusterDomain.
	ExtraDomains []string
	// Autopath answers the first step of a pod's search with what the last would find.
	Autopath bool
}

// LoadBalancer is the settings of the feature of that name.
type LoadBalancer struct {
	Enabled bool
	// Default makes Services without a class ours.
	Default bool
	// PeerPort is that of heartbeats between nodes, UDP and TCP.
	PeerPort int
	// Settle is how long a node that has just started leaves addresses to others.
	Settle time.Duration
}

// NetworkPolicy is the settings of the feature of that name.
type NetworkPolicy struct {
	Enabled bool
}

// Ingress is the settings of the feature of that name.
type Ingress struct {
	Enabled bool
	// Default makes the IngressClass wayleave the cluster's default, where none is.
	Default bool
	// HostPorts serves the ports 80 and 443 of the nodes, too.
	HostPorts bool
	// AdoptNginx serves Ingresses of ingress-nginx.
	AdoptNginx bool
	// HostsOfOneNamespace refuses rules for a host that another namespace owns.
	HostsOfOneNamespace bool
	// DefaultCertificate is a Secret, the zero Name for none.
	DefaultCertificate model.Name
	AccessLog          bool
	// NodeSelector has the labels of the nodes that serve Ingress; empty for all nodes.
	NodeSelector map[string]string
	// TrustedProxies are whose X-Forwarded-… is believed, ProxyProtocol who begins
	// connections with a PROXY header.
	TrustedProxies, ProxyProtocol []netip.Prefix
	// AuthURLNetworks are networks that auth-url can reach although they are refused by
	// default, such as addresses of nodes.
	AuthURLNetworks []netip.Prefix
	// GlobalAuthURL is a server that is asked about each request of every Ingress that has no
	// auth-url; empty for none. GlobalAuthSignin is where who is refused is sent, and
	// GlobalAuthResponseHeaders are fields of its answer for endpoints.
	GlobalAuthURL, GlobalAuthSignin string
	GlobalAuthResponseHeaders       []string
	// Drain is how long a proxy that ends waits for what is open.
	Drain time.Duration
	// Connect, Send and Read are time-outs towards endpoints.
	Connect, Send, Read time.Duration
	// ConnectionsPerClient is the most of one address.
	ConnectionsPerClient int
	// RequestHead bounds heads of clients' requests, ResponseHead those of endpoints' responses: bytes and fields.
	RequestHeadBytes, RequestFields   int
	ResponseHeadBytes, ResponseFields int
	// ServerHeader is the field Server of responses: empty for what endpoints send, NoServerHeader for none.
	ServerHeader string
	// EndpointTLSMinVersion is the oldest version of TLS towards endpoints, as crypto/tls numbers them.
	EndpointTLSMinVersion uint16
	// EndpointTLSRSA allows the RSA key exchange with endpoints.
	EndpointTLSRSA bool
}

// setting is one row of the table.
type setting struct {
	key string
	// value is the default as it is written in YAML.
	value string
	// set checks the value found and stores it; its error says what is allowed.
	set func(c *Config, v any) error
	// doc is for the ConfigMap, a line each.
	doc []string
}

func settings() []setting {
	return []setting{
		{"apiServer", `""`, text(func(c *Config) *string { return &c.APIServer }, url), []string{
			"URL of the API server. Empty: the one that the node's kubelet uses."}},
		{"clusterDomain", `""`, text(func(c *Config) *string { return &c.ClusterDomain }, domain), []string{
			"The DNS domain of the cluster. Empty: the kubelet's clusterDomain, else cluster.local."}},
		{"clusterDNS", `[]`, list(func(c *Config) *[]netip.Addr { return &c.ClusterDNS }, apiaddr.ParseAddr,
			"IP addresses"), []string{
			"The addresses of the Service kube-dns. Empty: the kubelet's clusterDNS, else the 10th of the " +
				"service range."}},
		{"logLevel", "info", level, []string{"debug, info, warn or error."}},
		{"mode", "auto", oneOf(func(c *Config) *string { return &c.Mode }, []string{"auto", "nftables", "iptables",
			"ipvs"}, []string{"ebpf"}), []string{
			"The data plane of Services: auto, nftables, iptables or ipvs; auto is nftables. A change takes the " +
				"old one out when",
			"the new one is in place; established connections live on."}},
		{"routing", "auto", oneOf(func(c *Config) *string { return &c.Routing }, []string{"auto", "direct", "vxlan",
			"cloud"}, []string{"bgp"}), []string{
			"How pods reach pods on other nodes: auto, direct, vxlan or cloud. auto is direct to nodes on the same",
			"L2 segment and vxlan (podnetwork.vxlanPort) to the others; with cloud the network between the nodes " +
				"carries podCIDRs."}},
		{"encryption", "none", oneOf(func(c *Config) *string { return &c.Encryption }, []string{"none"},
			[]string{"wireguard"}), []string{
			"Between nodes: none."}},
		{"podnetwork.enabled", "true", boolean(func(c *Config) *bool { return &c.PodNetwork.Enabled }), []string{
			"The pod network: CNI plugin, addresses, routes. Off: another CNI does it."}},
		{"podnetwork.masquerade", "true", boolean(func(c *Config) *bool { return &c.PodNetwork.Masquerade }), []string{
			"Give traffic of pods that leaves the cluster the node's address."}},
		{"podnetwork.coolDown", "60s", duration(func(c *Config) *time.Duration { return &c.PodNetwork.CoolDown }, 0,
			time.Hour), []string{
			"How long an address that a pod gave back is not given out again: 0s to 1h."}},
		{"podnetwork.probeEvery", "60s", duration(func(c *Config) *time.Duration { return &c.PodNetwork.ProbeEvery }, 0,
			24*time.Hour), []string{
			"How often the paths to the other nodes are probed for their MTU: 0s (never) to 24h."}},
		{"podnetwork.vxlanPort", "4789", port(func(c *Config) *int { return &c.PodNetwork.VXLANPort }), []string{
			"UDP port of VXLAN between nodes: 1 to 65535, the same on all nodes. A change cuts VXLAN between nodes " +
				"that have it and",
			"nodes that have not restarted yet."}},
		{"service.enabled", "true", boolean(func(c *Config) *bool { return &c.Service.Enabled }), []string{
			"The service proxy: ClusterIPs and NodePorts. Off: kube-proxy does it."}},
		{"service.nodePortAddresses", `[]`, nodePortAddresses, []string{
			"Networks in which the node's addresses serve node ports, or primary (its InternalIPs), localhost " +
				"(127.0.0.0/8) and",
			"all (0.0.0.0/0 and ::/0). Empty: primary. With localhost they are served on 127.0.0.1 as well " +
				"(IPv4 only; sets",
			"route_localnet)."}},
		{"service.externalIPs", "true", boolean(func(c *Config) *bool { return &c.Service.ExternalIPs }), []string{
			"Serve spec.externalIPs, which Kubernetes 1.36 deprecates: anyone who can write Services can choose the " +
				"addresses. Off: an",
			"Event names each Service that has some."}},
		{"service.conntrack.maxPerCore", "32768", number(func(c *Config) *int { return &c.Service.Tracking.MaxPerCore },
			0, 1<<22), []string{
			"How many connections the node remembers per CPU: net.netfilter.nf_conntrack_max is raised to that, and " +
				"never lowered.",
			"0 leaves it as it is."}},
		{"service.conntrack.min", "131072", number(func(c *Config) *int { return &c.Service.Tracking.Min }, 0,
			1<<26), []string{
			"How many connections the node remembers at least, however few CPUs it has."}},
		{"service.conntrack.tcpEstablishedTimeout", "24h",
			duration(func(c *Config) *time.Duration { return &c.Service.Tracking.Established }, 0,
				720*time.Hour), []string{
				"How long an idle TCP connection is remembered: up to 720h. For this and the other times 0s leaves " +
					"the node's own value."}},
		{"service.conntrack.tcpCloseWaitTimeout", "1h",
			duration(func(c *Config) *time.Duration { return &c.Service.Tracking.CloseWait }, 0,
				720*time.Hour), []string{
				"How long a TCP connection is remembered that one side has closed: up to 720h."}},
		{"service.conntrack.udpTimeout", "0s",
			duration(func(c *Config) *time.Duration { return &c.Service.Tracking.UDP }, 0, 720*time.Hour), []string{
				"How long a UDP flow is remembered that had no answer: up to 720h."}},
		{"service.conntrack.udpStreamTimeout", "0s",
			duration(func(c *Config) *time.Duration { return &c.Service.Tracking.UDPStream }, 0,
				720*time.Hour), []string{
				"How long a UDP flow is remembered that had answers: up to 720h."}},
		{"service.conntrack.tcpBeLiberal", "false",
			boolean(func(c *Config) *bool { return &c.Service.Tracking.Liberal }), []string{
				"Take TCP packets outside of the window for part of their connection. Without it they are dropped, " +
					"never passed on",
				"untranslated."}},
		{"iptables.flavour", "auto", oneOf(func(c *Config) *string { return &c.Iptables.Flavour },
			[]string{"auto", "nft", "legacy"}, nil), []string{
			"Which iptables the mode iptables uses: auto, nft or legacy. auto is the one that the host uses."}},
		{"ipvs.scheduler", "rr", oneOf(func(c *Config) *string { return &c.IPVS.Scheduler },
			[]string{"rr", "lc", "dh", "sh", "wrr", "wlc", "sed", "nq", "mh"}, nil), []string{
			"How the mode ipvs draws endpoints: rr, lc, dh, sh, wrr, wlc, sed, nq or mh."}},
		{"ipvs.drain", "15m", duration(func(c *Config) *time.Duration { return &c.IPVS.Drain }, 0,
			24*time.Hour), []string{
			"How long connections to a former endpoint live on in the mode ipvs, and those of the mode when another " +
				"takes over: 0s to 24h."}},
		{"dns.enabled", "true", boolean(func(c *Config) *bool { return &c.DNS.Enabled }), []string{
			"The cluster DNS. Off: CoreDNS does it."}},
		{"dns.pods", "insecure", oneOf(func(c *Config) *string { return &c.DNS.Pods }, []string{"disabled", "insecure",
			"verified"}, nil), []string{
			"Names of pods, as 10-244-1-5.default.pod.cluster.local: disabled has none; insecure answers with the " +
				"address in the name",
			"when the namespace exists; verified when such a pod exists, and has every agent watch all pods " +
				"of the cluster."}},
		{"dns.extraDomains", `[]`, list(func(c *Config) *[]string { return &c.DNS.ExtraDomains }, domainName,
			"DNS names"), []string{
			"Domains in which the cluster's names are answered, too. Reverse names are of clusterDomain."}},
		{"dns.upstreams", `[]`, list(func(c *Config) *[]model.Nameserver { return &c.DNS.Upstreams },
			model.ParseNameserver, nameservers), []string{
			"Servers for names outside of the cluster, asked in this order; tls://9.9.9.9@dns.quad9.net is DNS " +
				"over TLS. Empty:",
			"those of the node's /etc/resolv.conf."}},
		{"dns.stubDomains", `{}`, table(func(c *Config) *map[string][]model.Nameserver { return &c.DNS.StubDomains },
			model.ParseNameserver, nameservers), []string{
			"Servers of single domains, as in corp.example: [10.0.0.53]. They are asked for all names below, " +
				"and only they."}},
		{"dns.plainLetters", `[]`, list(func(c *Config) *[]model.Nameserver { return &c.DNS.PlainLetters }, plainServer,
			plainServers), []string{
			"Servers of upstreams, stubDomains or the node's /etc/resolv.conf that are asked for names in small " +
				"letters, in place of",
			"letters of random case, which make forged answers harder. Wayleave finds servers that cannot keep " +
				"letters by itself."}},
		{"dns.hosts", `{}`, table(func(c *Config) *map[string][]netip.Addr { return &c.DNS.Hosts }, apiaddr.ParseAddr,
			"IP addresses"), []string{
			"Addresses of single names outside of the cluster, as in printer.corp.example: [10.0.0.9]."}},
		{"dns.tlsCA", `""`, text(func(c *Config) *string { return &c.DNS.TLSCA }, certificates), []string{
			"Certificates (PEM) of authorities that servers of tls:// may have, beside the public ones."}},
		{"dns.cacheMiB", "16", number(func(c *Config) *int { return &c.DNS.CacheMiB }, 0, 128), []string{
			"MiB for answers of other servers: 0 (no cache) to 128."}},
		{"dns.cacheTTL", "1h", duration(func(c *Config) *time.Duration { return &c.DNS.CacheTTL }, time.Second,
			24*time.Hour), []string{
			"The longest that an answer is kept: 1s to 24h. A shorter TTL of its own counts."}},
		{"dns.negativeTTL", "30m", duration(func(c *Config) *time.Duration { return &c.DNS.NegativeTTL }, time.Second,
			24*time.Hour), []string{
			"The longest that the absence of a name is kept: 1s to 24h."}},
		{"dns.staleFor", "24h", duration(func(c *Config) *time.Duration { return &c.DNS.StaleFor }, 0,
			7*24*time.Hour), []string{
			"How long past its life an answer is told while no server answers: 0s (never) to 168h."}},
		{"dns.autopath", "true", boolean(func(c *Config) *bool { return &c.DNS.Autopath }), []string{
			"Answer the first query of a pod's walk through its search list with what the walk would find: one " +
				"query for google.com",
			"in place of four. Only for pods with the usual search list."}},
		{"loadbalancer.enabled", "true", boolean(func(c *Config) *bool { return &c.LoadBalancer.Enabled }), []string{
			"Addresses of AddressPools for Services of type LoadBalancer. Off: another load balancer gives " +
				"them, or none."}},
		{"loadbalancer.default", "true", boolean(func(c *Config) *bool { return &c.LoadBalancer.Default }), []string{
			"Serve Services without spec.loadBalancerClass, beside those of class wayleave.dev/l2. Set it to false " +
				"beside another load balancer."}},
		{"loadbalancer.peerPort", "7946", port(func(c *Config) *int { return &c.LoadBalancer.PeerPort }), []string{
			"Port of the heartbeats between nodes, UDP and TCP: 1 to 65535, on the nodes' InternalIPs."}},
		{"loadbalancer.settle", "5s", duration(func(c *Config) *time.Duration { return &c.LoadBalancer.Settle }, 0,
			10*time.Minute), []string{
			"How long a node that has just started leaves addresses to other nodes: 0s to 10m."}},
		{"networkpolicy.enabled", "true", boolean(func(c *Config) *bool { return &c.NetworkPolicy.Enabled }), []string{
			"The firewall of pods: NetworkPolicy. Off: another program enforces it, or nobody. Every agent watches " +
				"all pods of the cluster for it."}},
		{"ingress.enabled", "true", boolean(func(c *Config) *bool { return &c.Ingress.Enabled }), []string{
			"HTTP routing: Ingresses of the class wayleave, by a proxy on every node and the Service " +
				"wayleave-ingress. Off: another",
			"controller does it; its Ingresses are not touched in any case."}},
		{"ingress.default", "true", boolean(func(c *Config) *bool { return &c.Ingress.Default }), []string{
			"Make the IngressClass wayleave the default one when it is made and the cluster has none: Ingresses " +
				"without a class are ours then."}},
		{"ingress.hostPorts", "true", boolean(func(c *Config) *bool { return &c.Ingress.HostPorts }), []string{
			"Serve the ports 80 and 443 of the nodes' InternalIPs, too, where no other program has them. " +
				"They stay free " +
				"until the", "cluster has an Ingress of the class."}},
		{"ingress.nodeSelector", `{}`, labels(func(c *Config) *map[string]string { return &c.Ingress.NodeSelector }),
			[]string{
				"Labels of the nodes that serve Ingress, such as node-restriction.kubernetes.io/ingress: \"true\". " +
					"Empty: all nodes. Set it in",
				"the Helm chart: only the agents of these nodes (DaemonSet wayleave-ingress) can then read Secrets."}},
		{"ingress.adoptNginx", "false", boolean(func(c *Config) *bool { return &c.Ingress.AdoptNginx }), []string{
			"Serve Ingresses of ingress-nginx: those of the class nginx and of classes with its controller. Ask " +
				"`wayleave ingress check` first."}},
		{"ingress.hostsOfOneNamespace", "false",
			boolean(func(c *Config) *bool { return &c.Ingress.HostsOfOneNamespace }), []string{
				"Limit each host, and the names below a wildcard host, to the namespace of its oldest Ingress. Off: " +
					"other namespaces can add",
				"paths to a host, as in ingress-nginx; an Event names them."}},
		{"ingress.defaultCertificate", `""`,
			secretName(func(c *Config) *model.Name { return &c.Ingress.DefaultCertificate }), []string{
				"NAMESPACE/NAME of a Secret with the certificate for hosts that have none. Empty: one that " +
					"nobody has signed."}},
		{"ingress.accessLog", "false", boolean(func(c *Config) *bool { return &c.Ingress.AccessLog }), []string{
			"A line of JSON for each request, on the proxy container's standard output."}},
		{"ingress.trustedProxies", `[]`, list(func(c *Config) *[]netip.Prefix { return &c.Ingress.TrustedProxies },
			network, "CIDRs"), []string{
			"Networks of load balancers in front, whose X-Forwarded-... and Forwarded are believed and added to; " +
				"others' are replaced."}},
		{"ingress.proxyProtocol", `[]`, list(func(c *Config) *[]netip.Prefix { return &c.Ingress.ProxyProtocol },
			network, "CIDRs"), []string{
			"Networks of load balancers that begin each connection with a PROXY header, version 1 or 2. They must, " +
				"and nobody else may."}},
		{"ingress.authURLNetworks", `[]`, list(func(c *Config) *[]netip.Prefix { return &c.Ingress.AuthURLNetworks },
			network, "CIDRs"), []string{
			"Networks that the annotation auth-url can reach although they are refused by default: addresses of " +
				"nodes and the API server,",
			"loopback, link-local and metadata addresses. Example: 192.0.2.10/32 for an authentication " +
				"server on a node."}},
		{"ingress.globalAuthURL", `""`, text(func(c *Config) *string { return &c.Ingress.GlobalAuthURL },
			webURL), []string{
			"URL of an authentication server for all Ingresses without auth-url and without enable-global-auth: " +
				"\"false\", as auth-url has it.",
			"ACME challenges are not asked about. Empty: none."}},
		{"ingress.globalAuthSignin", `""`, text(func(c *Config) *string { return &c.Ingress.GlobalAuthSignin },
			webURL), []string{
			"Where who that server refuses is sent, as auth-signin has it. Empty: 401."}},
		{"ingress.globalAuthResponseHeaders", `[]`,
			list(func(c *Config) *[]string { return &c.Ingress.GlobalAuthResponseHeaders }, fieldName,
				"names of header fields"), []string{
				"Fields of that server's answer for endpoints, as auth-response-headers has them. Clients " +
					"cannot send them."}},
		{"ingress.drain", "30s", duration(func(c *Config) *time.Duration { return &c.Ingress.Drain }, time.Second,
			time.Hour), []string{
			"How long a proxy that ends waits for open requests and WebSockets: 1s to 1h, less than the pod's " +
				"terminationGracePeriodSeconds."}},
		{"ingress.connectTimeout", "5s", duration(func(c *Config) *time.Duration { return &c.Ingress.Connect },
			100*time.Millisecond, time.Hour), []string{
			"How long an endpoint may take to accept a connection: 100ms to 1h. Annotations may ask for another, as " +
				"for the next two."}},
		{"ingress.sendTimeout", "60s", duration(func(c *Config) *time.Duration { return &c.Ingress.Send },
			100*time.Millisecond, 24*time.Hour), []string{
			"How long an endpoint may take to read on: 100ms to 24h."}},
		{"ingress.readTimeout", "60s", duration(func(c *Config) *time.Duration { return &c.Ingress.Read },
			100*time.Millisecond, 24*time.Hour), []string{
			"How long an endpoint may be silent before and within its answer: 100ms to 24h."}},
		{"ingress.connectionsPerClient", "1024", number(func(c *Config) *int { return &c.Ingress.ConnectionsPerClient },
			1, 1<<20), []string{
			"The most connections of one client's address (of one /64 for IPv6) to one node's proxy: 1 to 1048576."}},
		{"ingress.requestHeadBytes", "32768", number(func(c *Config) *int { return &c.Ingress.RequestHeadBytes }, 4<<10,
			256<<10), []string{
			"The most bytes of a request's head: 4096 to 262144. The default is nginx's " +
				"large_client_header_buffers. A quarter of all",
			"connections may hold that much each before anything is known of them."}},
		{"ingress.requestFields", "128", number(func(c *Config) *int { return &c.Ingress.RequestFields }, 32,
			1024), []string{
			"The most header fields of a request over HTTP/1.1: 32 to 1024."}},
		{"ingress.responseHeadBytes", "65536", number(func(c *Config) *int { return &c.Ingress.ResponseHeadBytes },
			4<<10, 1<<20), []string{
			"The most bytes of the head of an endpoint's response: 4096 to 1048576. Larger ones are answered with " +
				"502."}},
		{"ingress.responseFields", "1024", number(func(c *Config) *int { return &c.Ingress.ResponseFields }, 32,
			8192), []string{
			"The most header fields of an endpoint's response: 32 to 8192. More are answered with 502."}},
		{"ingress.serverHeader", `""`, text(func(c *Config) *string { return &c.Ingress.ServerHeader },
			product), []string{
			"The header field Server of all responses. Empty: what endpoints send. none: it is removed, as " +
				"ingress-nginx does."}},
		{"ingress.endpointTLSMinVersion", `"1.2"`,
			tlsVersion(func(c *Config) *uint16 { return &c.Ingress.EndpointTLSMinVersion }), []string{
				"The oldest version of TLS that endpoints of the backend protocols HTTPS and GRPCS may speak: " +
					"\"1.0\", \"1.1\", \"1.2\" or \"1.3\"."}},
		{"ingress.endpointTLSRSAKeyExchange", "false",
			boolean(func(c *Config) *bool { return &c.Ingress.EndpointTLSRSA }), []string{
				"Allow endpoints that have only cipher suites with RSA key exchange (AES128-SHA and alike): no " +
					"forward secrecy."}},
	}
}

// Default is the configuration of an empty file.
func Default() Config {
	c, err := Parse(nil)
	if err != nil {
		panic(err) // the table's own defaults do not pass its checks; a test sees that
	}
	return c
}

// Parse reads the YAML of a settings file. The error lists every wrong key, with
// what was found and what is allowed.
func Parse(raw []byte) (Config, error) {
	r := newReader()
	if err := r.file("", raw); err != nil {
		return Config{}, err
	}
	return r.config()
}

// Has says whether a setting of that key is built.
func Has(key string) bool {
	return slices.ContainsFunc(settings(), func(s setting) bool { return s.key == key })
}

// fallback is the value of a setting that is nowhere.
func (s setting) fallback() (v any, err error) {
	err = yaml.Unmarshal([]byte(s.value), &v)
	return v, err
}

func show(v any) string {
	if s, ok := v.(string); ok {
		return fmt.Sprintf("%q", s)
	}
	return fmt.Sprint(v)
}

// keys lists what may stand directly below prefix.
func keys(prefix string, table []setting) []string {
	var out []string
	for _, s := range table {
		if rest, ok := strings.CutPrefix(s.key, prefix); ok {
			name, _, _ := strings.Cut(rest, ".")
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

// Commented is the settings file with every key, its default and its meaning,
// as it stands in the ConfigMap. All settings are read at start: a change takes
// effect when the pods are restarted, which drops no packet.
func Commented() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# The version of these keys. Unknown keys are errors, except in a file of a later version.\n"+
		"%s: %d\n", versionKey, Version)
	group := ""
	for _, s := range settings() {
		g, name, nested := strings.Cut(s.key, ".")
		indent := ""
		if nested {
			if g != group {
				fmt.Fprintf(&b, "%s:\n", g)
			}
			indent = "  "
		} else {
			name = s.key
		}
		group = g
		for _, line := range s.doc {
			fmt.Fprintf(&b, "%s# %s\n", indent, line)
		}
		fmt.Fprintf(&b, "%s%s: %s\n", indent, name, s.value)
	}
	return b.String()
}
