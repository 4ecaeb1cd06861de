package schema

import (
	"net/netip"
	"time"

	"wayleave.dev/internal/logging"
)

// Socket is a listening socket.
type Socket struct {
	Addr netip.AddrPort `json:"addr"`
	// TLS means that clients begin with a handshake; otherwise with HTTP/1.1, or HTTP/2 with prior knowledge.
	TLS bool `json:"tls,omitempty"`
}

// String returns the address and its protocol.
func (s Socket) String() string {
	if s.TLS {
		return "https://" + s.Addr.String()
	}
	return "http://" + s.Addr.String()
}

// Settings apply to all hosts. A zero number or time means the default.
type Settings struct {
	// Log configures the log of the process.
	Log logging.Settings `json:"log,omitzero"`
	// Trusted are clients whose X-Forwarded-… fields are trusted.
	Trusted []netip.Prefix `json:"trusted,omitempty"`
	// Sources are the source addresses of connections to endpoints, at most one per family; the node's own if there is
	// none.
	Sources []netip.Addr `json:"sources,omitempty"`
	// AskFromNode permits subrequests to authentication servers from the node's own address if Sources has none of the
	// family: another program provides the pod network.
	AskFromNode bool `json:"askFromNode,omitempty"`
	// AskAllowed are networks of authentication servers that are always permitted. AskRefused are addresses that are
	// refused otherwise, in addition to special addresses.
	AskAllowed []netip.Prefix `json:"askAllowed,omitempty"`
	AskRefused []netip.Addr   `json:"askRefused,omitempty"`
	// Cluster are networks of pods and of virtual addresses of Services, to which copies of requests are sent only for
	// named Services.
	Cluster []netip.Prefix `json:"cluster,omitempty"`
	// ProxyProtocol are clients that must begin each connection with a PROXY header, version 1 or 2; other clients must
	// not.
	ProxyProtocol []netip.Prefix `json:"proxyProtocol,omitempty"`
	// Secret hides the addresses of endpoints in affinity cookies. All proxies of a cluster have the same one.
	Secret []byte `json:"secret,omitempty"`
	// DefaultCertificate is the key of the certificate for unknown names; empty for a self-signed one.
	DefaultCertificate string `json:"defaultCertificate,omitempty"`
	// AccessLog writes a line of JSON for each request to the proxy's standard output.
	AccessLog bool `json:"accessLog,omitempty"`
	// Drain is how long a proxy that ends waits for exchanges and tunnels.
	Drain time.Duration `json:"drain,omitempty"`
	// Connections bounds all connections, ConnectionsPerClient those of one address (one /64 for IPv6); -1 of the
	// latter for no bound.
	Connections          int `json:"connections,omitempty"`
	ConnectionsPerClient int `json:"connectionsPerClient,omitempty"`
	// Connect, Send and Read are time-outs of endpoints.
	Connect time.Duration `json:"connect,omitempty"`
	Send    time.Duration `json:"send,omitempty"`
	Read    time.Duration `json:"read,omitempty"`
	// Tries is how many endpoints a request may be sent to.
	Tries int `json:"tries,omitempty"`
	// RequestHead and ResponseHead bound the heads of messages.
	RequestHead  HeadLimits `json:"requestHead,omitzero"`
	ResponseHead HeadLimits `json:"responseHead,omitzero"`
	// Server is the field of that name in all responses, empty for the endpoints' value; HideServer removes it.
	Server     string `json:"server,omitempty"`
	HideServer bool   `json:"hideServer,omitempty"`
	// EndpointTLS restricts TLS to endpoints.
	EndpointTLS TLSDefaults `json:"endpointTLS,omitzero"`
}

// HeadLimits bounds the head of a message. Zero means the default.
type HeadLimits struct {
	// Bytes bounds the complete head, Fields their number.
	Bytes, Fields int
}

// TLSDefaults apply to all endpoints.
type TLSDefaults struct {
	// MinVersion is the oldest version, in crypto/tls's numbers; 0 for TLS 1.2.
	MinVersion uint16 `json:"minVersion,omitempty"`
	// RSAKeyExchange permits cipher suites without forward secrecy, which old servers may need.
	RSAKeyExchange bool `json:"rsaKeyExchange,omitempty"`
}
