package schema

import (
	"net/netip"
	"time"

	"wayleave.dev/internal/logging"
)

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
	// Log is that of the process.
	Log logging.Settings `json:"log,omitzero"`
	// Trusted are clients whose X-Forwarded-… fields are believed.
	Trusted []netip.Prefix `json:"trusted,omitempty"`
	// Sources are the addresses to connect to endpoints from, at most one of each family;
	// the node's own where there is none.
	Sources []netip.Addr `json:"sources,omitempty"`
	// AskFromNode lets questions to authentication servers go out from the node's own address
	// where Sources has none of the family: another program makes the pod network.
	AskFromNode bool `json:"askFromNode,omitempty"`
	// AskAllowed are networks of authentication servers that may be asked in any case.
	// AskRefused are addresses that may not be otherwise, in addition to those that no server has.
	AskAllowed []netip.Prefix `json:"askAllowed,omitempty"`
	AskRefused []netip.Addr   `json:"askRefused,omitempty"`
	// Cluster are networks of pods and of virtual addresses of Services, where no copies of requests
	// go but to Services that are named.
	Cluster []netip.Prefix `json:"cluster,omitempty"`
	// ProxyProtocol are clients that begin each connection with a PROXY header, version 1
	// or 2. They must; other clients may not.
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
	RequestHead  HeadLimits `json:"requestHead,omitzero"`
	ResponseHead HeadLimits `json:"responseHead,omitzero"`
	// Server is the field of that name in all responses, empty for what endpoints say; HideServer
	// takes it out.
	Server     string `json:"server,omitempty"`
	HideServer bool   `json:"hideServer,omitempty"`
	// EndpointTLS is what endpoints may speak.
	EndpointTLS TLSDefaults `json:"endpointTLS,omitzero"`
}

// HeadLimits bound the head of a message. A zero number asks for the default.
type HeadLimits struct {
	// Bytes of the whole head, Fields in it.
	Bytes, Fields int
}

// TLSDefaults are what all endpoints may speak.
type TLSDefaults struct {
	// MinVersion is the oldest version, as crypto/tls numbers them; 0 for TLS 1.2.
	MinVersion uint16 `json:"minVersion,omitempty"`
	// RSAKeyExchange allows cipher suites without forward secrecy, which old servers may need.
	RSAKeyExchange bool `json:"rsaKeyExchange,omitempty"`
}
