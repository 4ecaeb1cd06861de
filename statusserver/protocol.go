// Package statusserver serves what kube-proxy serves on a node, /healthz and /livez for load balancers, /metrics and
// /proxyMode, in a process without capabilities: bytes from outside are parsed there, and never in the agent. It also
// serves the metrics of all processes of the node at one port.
//
// The agent's Supervisor starts the process, opens the ports and passes them on. The process asks the agent for one of
// the pages that there are, and is told the whole answer. It keeps an answer for a moment, so that the agent's
// work does not depend on how many ask. It ends with the agent.
//
// Other processes connect to sockets of the agent, which passes the connections on unread (package scrape). The process
// parses what they send. Of a request, only a bearer token reaches the agent, which sends it to the API server.
package statusserver

import (
	"context"
	"net/http"
	"net/netip"
	"time"
)

// Page is an answer that the agent can give. The process names one; nothing of a request reaches the agent.
type Page string

// The pages.
const (
	Healthz   Page = "healthz"
	Livez     Page = "livez"
	Metrics   Page = "metrics"
	ProxyMode Page = "proxyMode"
	// Alive says that the agent answers at all.
	Alive Page = "alive"
	// AllMetrics has the metrics of the agent and of all sources. The process makes it itself.
	AllMetrics Page = "allMetrics"
)

// freshFor is for how long an answer is given again.
func (p Page) freshFor() time.Duration {
	if p == Metrics || p == AllMetrics {
		return time.Second // rendering takes milliseconds
	}
	return 100 * time.Millisecond
}

// Port is a listener.
type Port struct {
	// Name is for messages: the address that it listens at.
	Name string `json:"name"`
	// Pages are served by path.
	Pages map[string]Page `json:"pages"`
	// Allowed are the networks whose connections are accepted; nil for all.
	Allowed []netip.Prefix `json:"allowed,omitempty"`
	// Token serves by TLS, and only requests with a bearer token that the Reviewer allows.
	Token bool `json:"token,omitempty"`
}

// Source is another process whose metrics are served.
type Source struct {
	// Name becomes the label process, Prefixes are the beginnings of the names that its metrics may have.
	Name     string   `json:"name"`
	Prefixes []string `json:"prefixes"`
	// Socket is where the agent listens for the process, and UID the user that may connect.
	Socket string `json:"-"`
	UID    uint32 `json:"-"`
}

// Reviewer says whether the bearer of a token may read the metrics, by a status of HTTP: 200, 401 (the token is not
// valid), 403 (it is valid and has no right) or 503 (not known now).
type Reviewer func(ctx context.Context, token string) int

// Answer is what is sent to a client.
type Answer struct {
	Status      int    `json:"status"`
	ContentType string `json:"contentType"`
	Body        []byte `json:"body"`
}

// Text is a good answer of plain text.
func Text(body string) Answer {
	return Answer{Status: http.StatusOK, ContentType: "text/plain; charset=utf-8", Body: []byte(body)}
}

// order is a frame of the agent: a port whose socket rides on it, an answer, what sources there are, the connection of
// one of them, or the result of a review.
type order struct {
	Port    *Port    `json:"port,omitempty"`
	Page    Page     `json:"page,omitempty"`
	Answer  *Answer  `json:"answer,omitempty"`
	Version string   `json:"version,omitempty"`
	Sources []Source `json:"sources,omitempty"`
	From    string   `json:"from,omitempty"`
	Review  *review  `json:"review,omitempty"`
}

// ask is a frame of the process: for a page, or for the review of a token.
type ask struct {
	Page   Page    `json:"page,omitempty"`
	Review *review `json:"review,omitempty"`
}

// review is the question whether a token is allowed, or with a Status the answer.
type review struct {
	ID     uint64 `json:"id"`
	Token  string `json:"token,omitempty"`
	Status int    `json:"status,omitempty"`
}

// The bounds of each port. A connection carries one request.
const (
	// MaxConnections and MaxPerSource are open at once; of one IPv4 address or IPv6 /64.
	MaxConnections = 512
	MaxPerSource   = 64
	// maxHeader bounds the head of a request; net/http reads 4 KiB more.
	maxHeader = 4 << 10
	// readTimeout bounds the time to the end of a request, writeTimeout that to the end of the answer.
	readTimeout  = 5 * time.Second
	writeTimeout = 10 * time.Second
	// answerTimeout is how long the agent may take. An agent that hangs is not healthy: the answer is 503 then.
	answerTimeout = 2 * time.Second
	// maxToken bounds a bearer token, and maxAsk a frame of the process.
	maxToken = 4 << 10
	maxAsk   = maxToken + 1<<10
	// askEvery is the least time between two questions that the agent works on.
	askEvery = 5 * time.Millisecond
	// Memory is the limit of the Go runtime of the process, in bytes.
	Memory = 64 << 20
)
