// Package statusserver serves what kube-proxy serves on a node, /healthz and /livez for load balancers, /metrics and
// /proxyMode, in a process without capabilities: bytes from outside are parsed there, and never in the agent.
//
// The agent's Supervisor starts the process, opens the ports and passes them on. The process asks the agent for one of
// the pages that there are, and is told the whole answer. It keeps an answer for a moment, so that the agent's
// work does not depend on how many ask. It ends with the agent.
package statusserver

import (
	"net/http"
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
)

// freshFor is for how long an answer is given again.
func (p Page) freshFor() time.Duration {
	if p == Metrics {
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
}

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

// order is a frame of the agent: a port whose socket rides on it, or an answer.
type order struct {
	Port   *Port   `json:"port,omitempty"`
	Page   Page    `json:"page,omitempty"`
	Answer *Answer `json:"answer,omitempty"`
}

// ask is a frame of the process.
type ask struct {
	Page Page `json:"page"`
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
	// maxAsk bounds a frame of the process.
	maxAsk = 1 << 10
	// askEvery is the least time between two questions that the agent works on.
	askEvery = 5 * time.Millisecond
	// Memory is the limit of the Go runtime of the process, in bytes.
	Memory = 64 << 20
)
