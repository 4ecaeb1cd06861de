// Package feed is how an agent tells its node's proxies what they route by, over a unix
// socket: the whole at first, then what changes, and the listening sockets as
// descriptors.
//
// Invariants:
//   - Certificates with their keys, and users with their password hashes, are on the
//     socket and in memory, never on a disk: a proxy that starts waits for an agent.
//   - A host is not sent before the backends and the certificate that it names, nor are
//     those taken away while it names them, or a change of a route would have requests
//     that lead nowhere.
//   - A proxy that loses its agent goes on with what it has.
package feed

import (
	"net/netip"
	"time"

	"wayleave.dev/internal/handoff"
	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

// protocol is how agent and proxy talk; see handoff.Protocol.
func protocol() handoff.Protocol {
	return handoff.Protocol{Child: "proxy", Version: 1, PassesSockets: true, ReportBytes: 4 << 20,
		ReportPause: 100 * time.Millisecond}
}

// Socket is a listening socket.
type Socket struct {
	Addr netip.AddrPort `json:"addr"`
	// TLS says that clients begin with a handshake; else with HTTP/1.1, or HTTP/2 with
	// prior knowledge.
	TLS bool `json:"tls,omitempty"`
}

// String is the address and what is spoken there.
func (s Socket) String() string {
	if s.TLS {
		return "https://" + s.Addr.String()
	}
	return "http://" + s.Addr.String()
}

// Settings are for all hosts. A zero number or time asks for the default.
type Settings struct {
	// Trusted are clients whose X-Forwarded-… fields are believed.
	Trusted []netip.Prefix `json:"trusted,omitempty"`
	// Sources are the addresses to connect to endpoints from, at most one of each family;
	// the node's own where there is none.
	Sources []netip.Addr `json:"sources,omitempty"`
	// AskFromNode lets questions to authentication servers go out from the node's own address
	// where Sources has none of the family: another program makes the pod network.
	AskFromNode bool `json:"askFromNode,omitempty"`
	// AskAllowed are networks of authentication servers that may be asked in any case.
	// AskRefused are addresses that may not be otherwise, beside those that no server has.
	AskAllowed []netip.Prefix `json:"askAllowed,omitempty"`
	AskRefused []netip.Addr   `json:"askRefused,omitempty"`
	// Cluster are networks of pods and of virtual addresses of Services, where no copies of requests
	// go but to Services that are named.
	Cluster []netip.Prefix `json:"cluster,omitempty"`
	// ProxyProtocol are clients that begin each connection with a PROXY header, version 1
	// or 2. They must; nobody else may.
	ProxyProtocol []netip.Prefix `json:"proxyProtocol,omitempty"`
	// Secret hides the addresses of endpoints in affinity cookies. All proxies of a cluster
	// have the same.
	Secret []byte `json:"secret,omitempty"`
	// DefaultCertificate is the key of that for names which no host has; empty for one
	// that the proxy makes itself.
	DefaultCertificate string `json:"defaultCertificate,omitempty"`
	// AccessLog writes a line of JSON for each request to the proxy's standard output.
	AccessLog bool `json:"accessLog,omitempty"`
	// Drain is how long a proxy that ends waits for exchanges and tunnels.
	Drain time.Duration `json:"drain,omitempty"`
	// Connections is the most in all, ConnectionsPerClient those of one address (of one
	// /64 for IPv6); -1 of the latter for no bound.
	Connections          int `json:"connections,omitempty"`
	ConnectionsPerClient int `json:"connectionsPerClient,omitempty"`
	// Connect, Send and Read are time-outs towards endpoints.
	Connect time.Duration `json:"connect,omitempty"`
	Send    time.Duration `json:"send,omitempty"`
	Read    time.Duration `json:"read,omitempty"`
	// Tries is how many endpoints a request may be sent to.
	Tries int `json:"tries,omitempty"`
	// RequestHead and ResponseHead bound the heads of messages.
	RequestHead  h1.HeadLimits `json:"requestHead,omitzero"`
	ResponseHead h1.HeadLimits `json:"responseHead,omitzero"`
	// Server is the field of that name in all responses, empty for what endpoints say; HideServer
	// takes it out.
	Server     string `json:"server,omitempty"`
	HideServer bool   `json:"hideServer,omitempty"`
	// EndpointTLS is what endpoints may speak.
	EndpointTLS upstream.TLS `json:"endpointTLS,omitzero"`
}

// Delta is a change of one kind.
type Delta[P any] = handoff.Delta[string, P]

// Listening is what a proxy should serve.
type Listening = handoff.Listening[Socket]

// Update is what the agent says. A part that is nil did not change. Backends and
// certificates that are set must be in force before the hosts are, and those that are
// deleted go after.
type Update struct {
	Settings     *Settings                 `json:"settings,omitempty"`
	Hosts        *Delta[table.Host]        `json:"hosts,omitempty"`
	Backends     *Delta[table.Backend]     `json:"backends,omitempty"`
	Certificates *Delta[table.Certificate] `json:"certificates,omitempty"`
	Listen       *Listening                `json:"listen,omitempty"`
}

// Report is what a proxy says of itself, whenever that changes.
type Report struct {
	// Certificates are those of no use, by key, with what is wrong.
	Certificates map[string]string `json:"certificates,omitempty"`
}
