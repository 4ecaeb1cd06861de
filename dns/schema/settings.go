package schema

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/internal/logging"
	"wayleave.dev/model"
)

// Settings are what the agent sends to the server in addition to the records.
type Settings struct {
	// Log is that of the process.
	Log logging.Settings `json:"log,omitzero"`
	// Domains are the cluster's, with a final dot, the first one for PTR answers.
	Domains []string `json:"domains"`
	// Forwarding is for names outside of the cluster.
	Forwarding Forwarding `json:"forwarding"`
	// Pods is how names of pods are answered.
	Pods string `json:"pods,omitempty"`
	// VIPs are the addresses of the cluster DNS.
	VIPs []netip.Addr `json:"vips,omitempty"`
	// Clients are answered; other addresses get no answer.
	Clients []netip.Prefix `json:"clients"`
	// Autopath answers the first step of a pod's search with the result of the last.
	Autopath bool `json:"autopath,omitempty"`
	// Search is the search list of the node, which follows the cluster's in pods.
	Search []string `json:"search,omitempty"`
}

// Socket names a listening socket.
type Socket struct {
	Network string         `json:"network"` // "udp" or "tcp"
	Addr    netip.AddrPort `json:"addr"`
}

// Forwarding contains the settings of the Forwarder.
type Forwarding struct {
	// Upstreams are tried in this order, those that answer first.
	Upstreams []model.Nameserver `json:"upstreams"`
	// Stubs are the servers of domains, which are in lower case with a final dot.
	Stubs map[string][]model.Nameserver `json:"stubs,omitempty"`
	// Hosts are names with addresses from the settings, in lower case with a final dot.
	Hosts map[string][]netip.Addr `json:"hosts,omitempty"`
	// PlainLetters are servers that get names only in lower case.
	PlainLetters []netip.AddrPort `json:"plainLetters,omitempty"`
	// CA contains authorities in PEM, in addition to the public ones, for servers with TLS.
	CA    string      `json:"ca,omitempty"`
	Cache CacheLimits `json:"cache"`
}

// Servers yields every server that the settings name.
func (s Forwarding) Servers() iter.Seq[model.Nameserver] {
	return func(yield func(model.Nameserver) bool) {
		for _, list := range append([][]model.Nameserver{s.Upstreams}, slices.Collect(maps.Values(s.Stubs))...) {
			for _, n := range list {
				if !yield(n) {
					return
				}
			}
		}
	}
}

// CacheLimits bound the cache.
type CacheLimits struct {
	// Bytes is the size of all entries; 0 keeps nothing.
	Bytes int `json:"bytes"`
	// TTL and NegativeTTL are the maximum lifetimes of replies with and without records.
	TTL         time.Duration `json:"ttl"`
	NegativeTTL time.Duration `json:"negativeTTL"`
	// Stale is how long an expired reply is served when no server answers.
	Stale time.Duration `json:"stale"`
}

// Ways to answer names of pods (the setting dns.pods).
const (
	// PodsDisabled answers none.
	PodsDisabled = "disabled"
	// PodsInsecure answers with the address in the name if its namespace exists: 10-244-1-5.default.pod.cluster.local.
	PodsInsecure = "insecure"
	// PodsVerified answers if a pod of the namespace has the address. The agent watches all pods of the cluster for it.
	PodsVerified = "verified"
)
