// Package config reads the settings of Wayleave. Every setting is one row of a table: its key, its default, its check,
// and its explanation in the ConfigMap. A key that is not in the table is an error, so a misspelled key, or a feature
// that is not built, cannot go unnoticed.
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
	"wayleave.dev/internal/logging"
	"wayleave.dev/model"
)

// Version is the version of the keys of the settings. It increases with each release of Wayleave that adds, removes or
// redefines keys. Unknown keys in a file with a higher settingsVersion are reported and ignored, so that a rollback
// starts. Unknown keys of other files are errors.
// Version 2 has metrics, podnetwork.cniConfDir, podnetwork.cniBinDir and the manifest's own settingsVersion.
const Version = 2

// versionKey is the key of a settings file's version.
const versionKey = "settingsVersion"

// The folders in which container runtimes look by default for CNI configurations and plugins.
const (
	CNIConfDir = "/etc/cni/net.d"
	CNIBinDir  = "/opt/cni/bin"
)

// Config is the set of valid settings. Copies share slices and maps, which must not be changed.
type Config struct {
	APIServer     string
	ClusterDomain string
	ClusterDNS    []netip.Addr
	LogLevel      slog.Level
	// LogJSON writes logs as JSON, not as text.
	LogJSON       bool
	Metrics       Metrics
	Mode          string
	Routing       string
	Encryption    string
	PodNetwork    PodNetwork
	Service       Service
	Iptables      Iptables
	IPVS          IPVS
	DNS           DNS
	LoadBalancer  LoadBalancer
	BGP           BGP
	NetworkPolicy NetworkPolicy
	Ingress       Ingress
	// Unused lists settings that have no effect, a line each: fields of a KubeProxyConfiguration, and keys of a file
	// of a later version.
	Unused []string
}

// Metrics holds the settings of the port that serves the metrics of all processes of a node.
type Metrics struct {
	// Port is 0 for none.
	Port int
	// AllowFrom are networks that need no token. With them, others cannot connect.
	AllowFrom []netip.Prefix
}

// PodNetwork holds the settings of the pod network.
type PodNetwork struct {
	Enabled bool
	// TakeOver runs the pod network although another CNI has a configuration on the node.
	TakeOver   bool
	Masquerade bool
	CoolDown   time.Duration
	ProbeEvery time.Duration
	// VXLANPort is the UDP port of VXLAN, the same on all nodes.
	VXLANPort int
	// EncryptNodes encrypts also between nodes and pods.
	EncryptNodes bool
	// WireGuard is what encrypts: auto, kernel or userspace.
	WireGuard string
	// WireGuardPort is the first of two UDP ports.
	WireGuardPort int
	// KeyRotation is how often keys are replaced.
	KeyRotation time.Duration
	// CNIConfDir and CNIBinDir are the folders of the node in which the container runtime looks for CNI configurations
	// and plugins. The manifest mounts them at the same paths.
	CNIConfDir, CNIBinDir string
}

// Service holds the settings of the service proxy.
type Service struct {
	Enabled bool
	// NodePortAddresses is empty for the node's InternalIPs only. NodePortPrimary adds them to other networks.
	NodePortAddresses []netip.Prefix
	NodePortPrimary   bool
	// ExternalIPs serves spec.externalIPs.
	ExternalIPs bool
	// Tracking holds the limits of the node's connection tracking.
	Tracking Tracking
}

// Tracking holds the settings service.conntrack. Zero keeps the node's value.
type Tracking struct {
	MaxPerCore, Min                        int
	Established, CloseWait, UDP, UDPStream time.Duration
	Liberal                                bool
}

// Iptables holds the settings of the mode iptables.
type Iptables struct {
	// Flavour is auto, nft or legacy.
	Flavour string
}

// IPVS holds the settings of the mode ipvs.
type IPVS struct {
	Scheduler string
	Drain     time.Duration
}

// DNS holds the settings of the cluster DNS.
type DNS struct {
	Enabled bool
	// TakeOver takes the Service kube-dns over from another DNS server that has pods.
	TakeOver bool
	// Upstreams is empty for the servers of the node's resolv.conf.
	Upstreams []model.Nameserver
	// StubDomains and Hosts have keys in lower case with a final dot.
	StubDomains map[string][]model.Nameserver
	Hosts       map[string][]netip.Addr
	// PlainLetters lists servers of Upstreams or StubDomains that get names in lower case.
	PlainLetters []model.Nameserver
	// TLSCA holds certificates (PEM) of authorities in addition to the public ones.
	TLSCA string
	// CacheMiB is 0 for no cache.
	CacheMiB              int
	CacheTTL, NegativeTTL time.Duration
	// StaleFor is how long an expired answer is served while no server answers.
	StaleFor time.Duration
	// Pods says how names of pods are answered: disabled, insecure or verified.
	Pods string
	// ExtraDomains lists domains of the cluster in addition to ClusterDomain.
	ExtraDomains []string
	// Autopath answers the first step of a search-list walk with the result of the walk.
	Autopath bool
}

// LoadBalancer holds the settings of the load balancer.
type LoadBalancer struct {
	Enabled bool
	// Default handles Services without a class.
	Default bool
	// TakeOver does so although another load balancer is installed.
	TakeOver bool
	// PeerPort is the port of heartbeats between nodes, UDP and TCP.
	PeerPort int
	// Settle is how long a node that has just started leaves addresses to others.
	Settle time.Duration
}

// BGP holds the settings of BGP. Objects have the rest: BGPConfiguration, BGPPeer and BGPAdvertisement.
type BGP struct {
	Enabled bool
}

// NetworkPolicy holds the settings of NetworkPolicy.
type NetworkPolicy struct {
	Enabled bool
}

// Ingress holds the settings of Ingress.
type Ingress struct {
	Enabled bool
	// Default makes the IngressClass wayleave the cluster's default class, if it has none.
	Default bool
	// HostPorts also serves the ports 80 and 443 of the nodes.
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
	// TrustedProxies are networks whose X-Forwarded-… fields are trusted. ProxyProtocol are networks that begin
	// connections with a PROXY header.
	TrustedProxies, ProxyProtocol []netip.Prefix
	// AuthURLNetworks are networks that auth-url can reach although they are refused by default, such as addresses of
	// nodes.
	AuthURLNetworks []netip.Prefix
	// GlobalAuthURL is the authentication server of every Ingress without auth-url; empty for none. GlobalAuthSignin
	// is where refused clients are redirected. GlobalAuthResponseHeaders are fields of its response that endpoints get.
	GlobalAuthURL, GlobalAuthSignin string
	GlobalAuthResponseHeaders       []string
	// AllowedResponseHeaders are the fields that ConfigMaps of custom-headers may set.
	AllowedResponseHeaders []string
	// Drain is how long a stopping proxy waits for open requests and tunnels.
	Drain time.Duration
	// Connect, Send and Read are time-outs of endpoints.
	Connect, Send, Read time.Duration
	// ConnectionsPerClient is the maximum for one address.
	ConnectionsPerClient int
	// These bound the heads of requests and of endpoints' responses: bytes and number of fields.
	RequestHeadBytes, RequestFields   int
	ResponseHeadBytes, ResponseFields int
	// ServerHeader is the field Server of responses: empty for the endpoint's, NoServerHeader for none.
	ServerHeader string
	// EndpointTLSMinVersion is the minimum version of TLS to endpoints, as in crypto/tls.
	EndpointTLSMinVersion uint16
	// EndpointTLSRSA allows the RSA key exchange with endpoints.
	EndpointTLSRSA bool
}

// setting is one row of the table.
type setting struct {
	key string
	// value is the default in YAML.
	value string
	// set checks a value and stores it. Its error says what is allowed.
	set func(c *Config, v any) error
	// doc holds the lines of the comment in the ConfigMap.
	doc []string
}

func settings() []setting {
	return []setting{
		{"apiServer", `""`, text(func(c *Config) *string { return &c.APIServer }, url), []string{
			"URL of the API server. Empty: the one that the node's kubelet uses."}},
		{"clusterDomain", `""`, text(func(c *Config) *string { return &c.ClusterDomain }, domain), []string{
			"DNS domain of the cluster. Empty: the kubelet's clusterDomain, otherwise cluster.local."}},
		{"clusterDNS", `[]`, list(func(c *Config) *[]netip.Addr { return &c.ClusterDNS }, apiaddr.ParseAddr,
			"IP addresses"), []string{
			"Addresses of the Service kube-dns. Empty: the kubelet's clusterDNS, otherwise the 10th address of",
			"the service range."}},
		{"logLevel", "info", level, []string{
			"Lowest level of the logs of all processes: debug, info, warn or error. `wayleave log-level` changes it",
			"in a running container."}},
		{"logFormat", "text", logFormat, []string{
			"text or json: a line of text, or an object of JSON. dns and proxy write text until the agent has",
			"told them."}},
		{"metrics.port", "0", metricsPort, []string{
			"Port of the nodes' InternalIPs that serves the metrics of all processes, such as 10247. 0: none. It is",
			"HTTPS, and needs a bearer token of an account that may get the nonResourceURL /metrics."}},
		{"metrics.allowFrom", `[]`, list(func(c *Config) *[]netip.Prefix { return &c.Metrics.AllowFrom },
			network, "CIDRs"), []string{
			"Networks that get the metrics by HTTP without a token. All others are then refused. Empty: a token is",
			"needed. Pods have addresses of the pod network."}},
		{"mode", "auto", oneOf(func(c *Config) *string { return &c.Mode }, []string{"auto", "nftables", "iptables",
			"ipvs", "ebpf"}, nil), []string{
			"Data plane of Services: auto (nftables), nftables, iptables, ipvs or ebpf (docs/ebpf.md). After a change,",
			"the old mode is removed once the new one is complete; established connections continue."}},
		{"routing", "auto", oneOf(func(c *Config) *string { return &c.Routing }, []string{"auto", "direct", "vxlan",
			"bgp", "cloud"}, nil), []string{
			"How pods reach pods on other nodes: auto, direct, vxlan, bgp or cloud. auto uses direct for nodes on",
			"the same L2 segment, and vxlan (podnetwork.vxlanPort) for all others. bgp: nodes tell each other and",
			"routers of podCIDRs by BGP (needs bgp.enabled), and Ready nodes that are not heard of are reached as with",
			"auto. cloud: the network between the nodes carries podCIDRs."}},
		{"encryption", "none", oneOf(func(c *Config) *string { return &c.Encryption },
			[]string{EncryptionNone, EncryptionStrict, EncryptionPreferred}, nil), []string{
			"Encryption between pods of different nodes: none, wireguard or wireguard-preferred. wireguard drops what",
			"cannot be encrypted. wireguard-preferred sends that unencrypted: use it to switch encryption on or off",
			"under traffic (docs/encryption.md)."}},
		{"podnetwork.enabled", "true", boolean(func(c *Config) *bool { return &c.PodNetwork.Enabled }), []string{
			"Pod network: CNI plugin, addresses, routes. false: another CNI plugin provides it."}},
		{"podnetwork.takeOver", "false", boolean(func(c *Config) *bool { return &c.PodNetwork.TakeOver }), []string{
			"Run the pod network also on nodes that have another CNI's configuration. false: on such a node it",
			"stays off, and an Event says so, unless the node has had it before."}},
		{"podnetwork.masquerade", "true", boolean(func(c *Config) *bool { return &c.PodNetwork.Masquerade }), []string{
			"Masquerade traffic of pods that leaves the cluster with the node's address."}},
		{"podnetwork.coolDown", "60s", duration(func(c *Config) *time.Duration { return &c.PodNetwork.CoolDown }, 0,
			time.Hour), []string{
			"How long an address that a pod released is not assigned again: 0s to 1h."}},
		{"podnetwork.probeEvery", "60s", duration(func(c *Config) *time.Duration { return &c.PodNetwork.ProbeEvery }, 0,
			24*time.Hour), []string{
			"Interval of the path MTU probes to other nodes: 0s (never) to 24h."}},
		{"podnetwork.vxlanPort", "4789", port(func(c *Config) *int { return &c.PodNetwork.VXLANPort }), []string{
			"UDP port of VXLAN between nodes: 1 to 65535, the same on all nodes. A change interrupts VXLAN",
			"between nodes that have restarted and nodes that have not."}},
		{"podnetwork.encryptNodes", "false", boolean(func(c *Config) *bool { return &c.PodNetwork.EncryptNodes }),
			[]string{
				"Encrypt also between nodes and pods of other nodes, if encryption is on. The mode ipvs needs it."}},
		{"podnetwork.wireguard", "auto", oneOf(func(c *Config) *string { return &c.PodNetwork.WireGuard },
			[]string{"auto", "kernel", "userspace"}, nil), []string{
			"What encrypts: kernel, userspace (a process of the agent), or auto: the kernel if it has WireGuard."}},
		{"podnetwork.wireguardPort", "51871", wireguardPort, []string{
			"First of two UDP ports of WireGuard between nodes: 1 to 65534."}},
		{"podnetwork.keyRotation", "24h", duration(func(c *Config) *time.Duration { return &c.PodNetwork.KeyRotation },
			2*time.Minute, 720*time.Hour), []string{
			"How often the nodes change to new keys of encryption, the same on all nodes: 2m to 720h. Their clocks",
			"must differ by less than a quarter of it."}},
		{"podnetwork.cniConfDir", CNIConfDir, text(func(c *Config) *string { return &c.PodNetwork.CNIConfDir }, folder),
			[]string{
				"Folder of the nodes in which the container runtime looks for CNI configurations. The manifest must",
				"mount it: docs/install/README.md."}},
		{"podnetwork.cniBinDir", CNIBinDir, text(func(c *Config) *string { return &c.PodNetwork.CNIBinDir }, folder),
			[]string{
				"Folder of the nodes in which the container runtime looks for CNI plugins; mounted likewise."}},
		{"service.enabled", "true", boolean(func(c *Config) *bool { return &c.Service.Enabled }), []string{
			"Service proxy: ClusterIPs and NodePorts. false: kube-proxy serves them."}},
		{"service.nodePortAddresses", `[]`, nodePortAddresses, []string{
			"Networks in which addresses of the node serve node ports, or primary (its InternalIPs), localhost",
			"(127.0.0.0/8) and all (0.0.0.0/0 and ::/0). Empty: primary. With localhost, node ports are also",
			"served on 127.0.0.1 (IPv4 only; sets route_localnet)."}},
		{"service.externalIPs", "true", boolean(func(c *Config) *bool { return &c.Service.ExternalIPs }), []string{
			"Serve spec.externalIPs, which Kubernetes 1.36 deprecates: anyone who can write Services can choose",
			"the addresses. false: an Event names each Service that has externalIPs."}},
		{"service.conntrack.maxPerCore", "32768", number(func(c *Config) *int { return &c.Service.Tracking.MaxPerCore },
			0, 1<<22), []string{
			"Connections that the node can track per CPU: net.netfilter.nf_conntrack_max is raised to that,",
			"never lowered. 0 keeps the node's value."}},
		{"service.conntrack.min", "131072", number(func(c *Config) *int { return &c.Service.Tracking.Min }, 0,
			1<<26), []string{
			"Minimum number of connections that the node can track, regardless of its number of CPUs."}},
		{"service.conntrack.tcpEstablishedTimeout", "24h",
			duration(func(c *Config) *time.Duration { return &c.Service.Tracking.Established }, 0,
				720*time.Hour), []string{
				"Time-out of idle TCP connections: up to 720h. Here and below, 0s keeps the node's value."}},
		{"service.conntrack.tcpCloseWaitTimeout", "1h",
			duration(func(c *Config) *time.Duration { return &c.Service.Tracking.CloseWait }, 0,
				720*time.Hour), []string{
				"Time-out of TCP connections that one side has closed: up to 720h."}},
		{"service.conntrack.udpTimeout", "0s",
			duration(func(c *Config) *time.Duration { return &c.Service.Tracking.UDP }, 0, 720*time.Hour), []string{
				"Time-out of UDP flows without a reply: up to 720h."}},
		{"service.conntrack.udpStreamTimeout", "0s",
			duration(func(c *Config) *time.Duration { return &c.Service.Tracking.UDPStream }, 0,
				720*time.Hour), []string{
				"Time-out of UDP flows with replies: up to 720h."}},
		{"service.conntrack.tcpBeLiberal", "false",
			boolean(func(c *Config) *bool { return &c.Service.Tracking.Liberal }), []string{
				"Accept TCP packets outside of the window as part of their connection. Otherwise they are dropped,",
				"and never forwarded without translation."}},
		{"iptables.flavour", "auto", oneOf(func(c *Config) *string { return &c.Iptables.Flavour },
			[]string{"auto", "nft", "legacy"}, nil), []string{
			"iptables flavour of the mode iptables: auto, nft or legacy. auto uses the host's flavour."}},
		{"ipvs.scheduler", "rr", oneOf(func(c *Config) *string { return &c.IPVS.Scheduler },
			[]string{"rr", "lc", "dh", "sh", "wrr", "wlc", "sed", "nq", "mh"}, nil), []string{
			"Scheduler of the mode ipvs: rr, lc, dh, sh, wrr, wlc, sed, nq or mh."}},
		{"ipvs.drain", "15m", duration(func(c *Config) *time.Duration { return &c.IPVS.Drain }, 0,
			24*time.Hour), []string{
			"How long connections to removed endpoints continue in the mode ipvs, and those of the mode when",
			"another one replaces it: 0s to 24h."}},
		{"dns.enabled", "true", boolean(func(c *Config) *bool { return &c.DNS.Enabled }), []string{
			"Cluster DNS. false: CoreDNS or another server provides it; see also dns.takeOver."}},
		{"dns.pods", "insecure", oneOf(func(c *Config) *string { return &c.DNS.Pods }, []string{"disabled", "insecure",
			"verified"}, nil), []string{
			"Names of pods, such as 10-244-1-5.default.pod.cluster.local. disabled: none. insecure: answered",
			"with the address in the name if the namespace exists. verified: answered if such a pod exists;",
			"every agent then watches all pods of the cluster."}},
		{"dns.extraDomains", `[]`, list(func(c *Config) *[]string { return &c.DNS.ExtraDomains }, domainName,
			"DNS names"), []string{
			"Further domains in which the cluster's names are answered. Reverse names use clusterDomain."}},
		{"dns.upstreams", `[]`, list(func(c *Config) *[]model.Nameserver { return &c.DNS.Upstreams },
			model.ParseNameserver, nameservers), []string{
			"Servers for names outside the cluster, queried in this order. tls://9.9.9.9@dns.quad9.net is DNS",
			"over TLS. Empty: those of the node's /etc/resolv.conf."}},
		{"dns.stubDomains", `{}`, table(func(c *Config) *map[string][]model.Nameserver { return &c.DNS.StubDomains },
			model.ParseNameserver, nameservers), []string{
			"Servers for single domains, as in corp.example: [10.0.0.53]. All names below are sent to these",
			"servers only."}},
		{"dns.plainLetters", `[]`, list(func(c *Config) *[]model.Nameserver { return &c.DNS.PlainLetters }, plainServer,
			plainServers), []string{
			"Servers of upstreams, stubDomains or the node's /etc/resolv.conf that get names in lower case.",
			"Other servers get letters of random case, which makes forged answers harder. Wayleave detects",
			"servers that do not preserve letter case."}},
		{"dns.hosts", `{}`, table(func(c *Config) *map[string][]netip.Addr { return &c.DNS.Hosts }, apiaddr.ParseAddr,
			"IP addresses"), []string{
			"Addresses of single names outside the cluster, as in printer.corp.example: [10.0.0.9]."}},
		{"dns.tlsCA", `""`, text(func(c *Config) *string { return &c.DNS.TLSCA }, certificates), []string{
			"Certificates (PEM) of authorities that may issue certificates of tls:// servers, in addition to",
			"public ones."}},
		{"dns.cacheMiB", "16", number(func(c *Config) *int { return &c.DNS.CacheMiB }, 0, 128), []string{
			"Size of the cache for upstream answers in MiB: 0 (no cache) to 128."}},
		{"dns.cacheTTL", "1h", duration(func(c *Config) *time.Duration { return &c.DNS.CacheTTL }, time.Second,
			24*time.Hour), []string{
			"Maximum time that an answer is cached: 1s to 24h. A shorter TTL of the answer takes precedence."}},
		{"dns.negativeTTL", "30m", duration(func(c *Config) *time.Duration { return &c.DNS.NegativeTTL }, time.Second,
			24*time.Hour), []string{
			"Maximum time that the absence of a name is cached: 1s to 24h."}},
		{"dns.staleFor", "24h", duration(func(c *Config) *time.Duration { return &c.DNS.StaleFor }, 0,
			7*24*time.Hour), []string{
			"How long expired answers are served while no server answers: 0s (never) to 168h."}},
		{"dns.autopath", "true", boolean(func(c *Config) *bool { return &c.DNS.Autopath }), []string{
			"Answer the first query of a pod's search-list walk with the result of the walk: one query for",
			"google.com instead of four. Only for pods with the kubelet's own search list."}},
		{"dns.takeOver", "false", boolean(func(c *Config) *bool { return &c.DNS.TakeOver }), []string{
			"Take the Service kube-dns over from another DNS server, such as CoreDNS. false: that server keeps it",
			"as long as it has pods, and an Event says so. What is taken over stays taken over."}},
		{"loadbalancer.enabled", "true", boolean(func(c *Config) *bool { return &c.LoadBalancer.Enabled }), []string{
			"Addresses of AddressPools for Services of type LoadBalancer. false: another load balancer",
			"allocates addresses, or none does."}},
		{"loadbalancer.default", "true", boolean(func(c *Config) *bool { return &c.LoadBalancer.Default }), []string{
			"Serve Services without spec.loadBalancerClass, in addition to those of class wayleave.dev/l2. See",
			"also loadbalancer.takeOver."}},
		{"loadbalancer.takeOver", "false", boolean(func(c *Config) *bool { return &c.LoadBalancer.TakeOver }), []string{
			"Serve Services without a class although MetalLB or k3s' ServiceLB is there when Wayleave is installed.",
			"false: they stay with that one, and an Event says so. What Wayleave serves, it keeps."}},
		{"loadbalancer.peerPort", "7946", port(func(c *Config) *int { return &c.LoadBalancer.PeerPort }), []string{
			"Port of heartbeats between nodes, UDP and TCP: 1 to 65535, on the nodes' InternalIPs."}},
		{"loadbalancer.settle", "5s", duration(func(c *Config) *time.Duration { return &c.LoadBalancer.Settle }, 0,
			10*time.Minute), []string{
			"How long a node that has just started leaves addresses to other nodes: 0s to 10m."}},
		{"bgp.enabled", "false", boolean(func(c *Config) *bool { return &c.BGP.Enabled }), []string{
			"Sessions with BGP peers, as BGPPeers, BGPAdvertisements and the BGPConfiguration say. Nodes then listen",
			"for them on TCP port 179 of their InternalIPs. false: no process, no port."}},
		{"networkpolicy.enabled", "true", boolean(func(c *Config) *bool { return &c.NetworkPolicy.Enabled }), []string{
			"Enforce NetworkPolicies. Every agent then watches all pods of the cluster. false: another program",
			"enforces them, or none does."}},
		{"ingress.enabled", "true", boolean(func(c *Config) *bool { return &c.Ingress.Enabled }), []string{
			"Serve Ingresses of the class wayleave by a proxy on every node and the Service wayleave-ingress.",
			"false: another controller serves them. Ingresses of other controllers are never changed."}},
		{"ingress.default", "true", boolean(func(c *Config) *bool { return &c.Ingress.Default }), []string{
			"Make the IngressClass wayleave the default class when it is created, if the cluster has no class of",
			"another controller. Wayleave then serves Ingresses without a class."}},
		{"ingress.hostPorts", "true", boolean(func(c *Config) *bool { return &c.Ingress.HostPorts }), []string{
			"Also serve the ports 80 and 443 of the nodes' InternalIPs if no other program uses them, while the",
			"cluster has an Ingress of the class."}},
		{"ingress.nodeSelector", `{}`, labels(func(c *Config) *map[string]string { return &c.Ingress.NodeSelector }),
			[]string{
				"Labels of the nodes that serve Ingress, such as node-restriction.kubernetes.io/ingress: \"true\".",
				"Empty: all nodes. Set it in the Helm chart: only the agents of these nodes (DaemonSet",
				"wayleave-ingress) can then read Secrets."}},
		{"ingress.adoptNginx", "false", boolean(func(c *Config) *bool { return &c.Ingress.AdoptNginx }), []string{
			"Serve Ingresses of ingress-nginx: those of the class nginx and of classes with its controller. Run",
			"`wayleave ingress check` first."}},
		{"ingress.hostsOfOneNamespace", "false",
			boolean(func(c *Config) *bool { return &c.Ingress.HostsOfOneNamespace }), []string{
				"Limit each host, and the names below a wildcard host, to the namespace of its oldest Ingress.",
				"false: other namespaces can add paths to a host, as in ingress-nginx; an Event names them."}},
		{"ingress.defaultCertificate", `""`,
			secretName(func(c *Config) *model.Name { return &c.Ingress.DefaultCertificate }), []string{
				"NAMESPACE/NAME of a Secret with the certificate for hosts without one. Empty: a self-signed one."}},
		{"ingress.accessLog", "false", boolean(func(c *Config) *bool { return &c.Ingress.AccessLog }), []string{
			"Log each request as a line of JSON on the proxy container's standard output."}},
		{"ingress.trustedProxies", `[]`, list(func(c *Config) *[]netip.Prefix { return &c.Ingress.TrustedProxies },
			network, "CIDRs"), []string{
			"Networks of load balancers in front of the proxy, whose X-Forwarded-... and Forwarded fields are",
			"trusted and extended. Those of other clients are replaced."}},
		{"ingress.proxyProtocol", `[]`, list(func(c *Config) *[]netip.Prefix { return &c.Ingress.ProxyProtocol },
			network, "CIDRs"), []string{
			"Networks of load balancers that begin each connection with a PROXY header, version 1 or 2. They",
			"must send it, and other clients must not."}},
		{"ingress.authURLNetworks", `[]`, list(func(c *Config) *[]netip.Prefix { return &c.Ingress.AuthURLNetworks },
			network, "CIDRs"), []string{
			"Networks that the annotation auth-url can reach although they are refused by default: addresses of",
			"nodes and the API server, loopback, link-local and metadata addresses. Example: 192.0.2.10/32 for",
			"an authentication server on a node."}},
		{"ingress.globalAuthURL", `""`, text(func(c *Config) *string { return &c.Ingress.GlobalAuthURL },
			webURL), []string{
			"URL of an authentication server for all Ingresses without auth-url and without enable-global-auth:",
			"\"false\"; same syntax as auth-url. ACME challenges are exempt. Empty: none."}},
		{"ingress.globalAuthSignin", `""`, text(func(c *Config) *string { return &c.Ingress.GlobalAuthSignin },
			webURL), []string{
			"Where clients are redirected if that server refuses them, as in auth-signin. Empty: 401."}},
		{"ingress.globalAuthResponseHeaders", `[]`,
			list(func(c *Config) *[]string { return &c.Ingress.GlobalAuthResponseHeaders }, fieldName,
				"names of header fields"), []string{
				"Fields of that server's response that endpoints get, as in auth-response-headers. Clients cannot",
				"set them."}},
		{"ingress.globalAllowedResponseHeaders", `[]`,
			list(func(c *Config) *[]string { return &c.Ingress.AllowedResponseHeaders }, fieldName,
				"names of header fields"), []string{
				"Response fields that a ConfigMap named by the annotation custom-headers can set, as",
				"global-allowed-response-headers of ingress-nginx. A ConfigMap with another field closes its paths."}},
		{"ingress.drain", "30s", duration(func(c *Config) *time.Duration { return &c.Ingress.Drain }, time.Second,
			time.Hour), []string{
			"How long a stopping proxy waits for open requests and WebSockets: 1s to 1h, less than the pod's",
			"terminationGracePeriodSeconds."}},
		{"ingress.connectTimeout", "5s", duration(func(c *Config) *time.Duration { return &c.Ingress.Connect },
			100*time.Millisecond, time.Hour), []string{
			"How long an endpoint may take to accept a connection: 100ms to 1h. Annotations can override this",
			"and the next two settings."}},
		{"ingress.sendTimeout", "60s", duration(func(c *Config) *time.Duration { return &c.Ingress.Send },
			100*time.Millisecond, 24*time.Hour), []string{
			"How long an endpoint may take to continue reading: 100ms to 24h."}},
		{"ingress.readTimeout", "60s", duration(func(c *Config) *time.Duration { return &c.Ingress.Read },
			100*time.Millisecond, 24*time.Hour), []string{
			"How long an endpoint may be silent before and within its response: 100ms to 24h."}},
		{"ingress.connectionsPerClient", "1024", number(func(c *Config) *int { return &c.Ingress.ConnectionsPerClient },
			1, 1<<20), []string{
			"Maximum number of connections from one client's address (a /64 for IPv6) to one node's proxy: 1 to",
			"1048576."}},
		{"ingress.requestHeadBytes", "32768", number(func(c *Config) *int { return &c.Ingress.RequestHeadBytes }, 4<<10,
			256<<10), []string{
			"Maximum size of a request's head in bytes: 4096 to 262144. The default is nginx's",
			"large_client_header_buffers. A quarter of all connections can use that much each before the client",
			"is known."}},
		{"ingress.requestFields", "128", number(func(c *Config) *int { return &c.Ingress.RequestFields }, 32,
			1024), []string{
			"Maximum number of header fields of a request over HTTP/1.1: 32 to 1024."}},
		{"ingress.responseHeadBytes", "65536", number(func(c *Config) *int { return &c.Ingress.ResponseHeadBytes },
			4<<10, 1<<20), []string{
			"Maximum size of the head of an endpoint's response in bytes: 4096 to 1048576. Larger ones become",
			"502."}},
		{"ingress.responseFields", "1024", number(func(c *Config) *int { return &c.Ingress.ResponseFields }, 32,
			8192), []string{
			"Maximum number of header fields of an endpoint's response: 32 to 8192. More become 502."}},
		{"ingress.serverHeader", `""`, text(func(c *Config) *string { return &c.Ingress.ServerHeader },
			product), []string{
			"Header field Server of all responses. Empty: the endpoint's. none: removed, as in ingress-nginx."}},
		{"ingress.endpointTLSMinVersion", `"1.2"`,
			tlsVersion(func(c *Config) *uint16 { return &c.Ingress.EndpointTLSMinVersion }), []string{
				"Minimum version of TLS to endpoints of the backend protocols HTTPS and GRPCS: \"1.0\", \"1.1\", " +
					"\"1.2\" or \"1.3\"."}},
		{"ingress.endpointTLSRSAKeyExchange", "false",
			boolean(func(c *Config) *bool { return &c.Ingress.EndpointTLSRSA }), []string{
				"Allow endpoints that support only RSA key exchange (AES128-SHA and similar): no forward secrecy."}},
	}
}

// Default returns the configuration of an empty file.
func Default() Config {
	c, err := Parse(nil)
	if err != nil {
		panic(err) // the table's own defaults do not pass its checks; a test sees that
	}
	return c
}

// Parse reads the YAML of a settings file. The error lists every invalid key, with the value found and the values
// allowed.
func Parse(raw []byte) (Config, error) {
	r := newReader()
	if err := r.file("", raw); err != nil {
		return Config{}, err
	}
	return r.config()
}

// Log returns the settings of the logs of all processes.
func (c Config) Log() logging.Settings { return logging.Settings{Level: c.LogLevel, JSON: c.LogJSON} }

// Has reports whether a setting with that key exists.
func Has(key string) bool {
	return slices.ContainsFunc(settings(), func(s setting) bool { return s.key == key })
}

// Keys lists the keys of all settings.
func Keys() (keys []string) {
	for _, s := range settings() {
		keys = append(keys, s.key)
	}
	return keys
}

// fallback returns the default value of a setting.
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

// keys lists the names that are allowed directly below prefix.
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

// Commented returns the settings file of the ConfigMap, with every key, its default and its explanation. All settings
// are read at start: a change takes effect when the pods restart, which drops no packet.
func Commented() string {
	var b strings.Builder
	fmt.Fprintf(&b,
		"# Version of the keys below. An earlier version of Wayleave ignores keys that it does not know.\n%s: %d\n",
		versionKey, Version)
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
