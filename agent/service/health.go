package service

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/statusserver"
)

// ports serves what kube-proxy serves: :10256/healthz and /livez for load balancers, :10249 for metrics and the
// mode, by a process without capabilities. A port that somebody else holds is named in status and tried again.
func ports(n *agent.Node) *statusserver.Supervisor {
	// Metrics are for the node itself, as kube-proxy's by default.
	list := []statusserver.Port{
		{Name: ":10256", Pages: map[string]statusserver.Page{"/healthz": statusserver.Healthz,
			"/livez": statusserver.Livez}},
		{Name: "127.0.0.1:10249", Pages: map[string]statusserver.Page{"/healthz": statusserver.Alive,
			"/metrics": statusserver.Metrics, "/proxyMode": statusserver.ProxyMode}},
	}
	return &statusserver.Supervisor{Args: []string{"status-server"}, Log: n.Log, Logs: n.Logs, Version: n.Version,
		Ports:   func() []statusserver.Port { return append(slices.Clone(list), scrapePorts(n)...) },
		Sources: sources(n), ListenSource: agent.ListenChild, Review: reviewer(n),
		Render: func(name statusserver.Page) statusserver.Answer { return page(n, name) },
		Say:    func(port string, err error) { n.SetCondition("port "+port, err) }}
}

// page is what the process that serves is told to answer.
func page(n *agent.Node, name statusserver.Page) statusserver.Answer {
	switch name {
	case statusserver.Healthz:
		return healthz(n)
	case statusserver.Livez:
		return livez(n)
	case statusserver.ProxyMode:
		return statusserver.Text(n.Config.DataPlane())
	case statusserver.Alive:
		return statusserver.Text("ok")
	}
	return n.MetricsPage()
}

// proxyState says what is wrong with the service proxy, nil where it keeps up.
func proxyState(n *agent.Node) error {
	s, on := n.States()[loopName]
	if !on || s.Synced && (s.Error == "" || s.Partial) {
		return nil
	}
	return fmt.Errorf("the service proxy is behind: %s", s.Error)
}

// proxyHealth is what kube-proxy v1.36 answers.
type proxyHealth struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyHealth `json:"status,omitempty"`
}

type familyHealth struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// healthz is for load balancers: a node that is being deleted gets nothing more.
// livez is for who would restart us, and does not look at that.
func healthz(n *agent.Node) statusserver.Answer {
	eligible := true
	if me, ok := n.Store.Snapshot().Node(n.Name); ok {
		eligible = !me.Leaving
	}
	return health(n, eligible, &eligible)
}

func livez(n *agent.Node) statusserver.Answer { return health(n, true, nil) }

func health(n *agent.Node, eligible bool, shown *bool) statusserver.Answer {
	now := time.Now()
	h := proxyHealth{LastUpdated: now, CurrentTime: now, NodeEligible: shown, Healthy: proxyState(n) == nil}
	if !h.Healthy {
		h.LastUpdated = n.States()[loopName].LastApplied
	}
	family := familyHealth{h.LastUpdated, h.Healthy} // both are one transaction
	h.Status = map[string]familyHealth{"IPv4": family, "IPv6": family}
	out := statusserver.Answer{Status: http.StatusOK, ContentType: "application/json"}
	if !h.Healthy || !eligible {
		out.Status = http.StatusServiceUnavailable
	}
	body, err := json.Marshal(h)
	if err != nil {
		return statusserver.Answer{Status: http.StatusInternalServerError, Body: []byte(err.Error())}
	}
	out.Body = append(body, '\n')
	return out
}
