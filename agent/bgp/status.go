package bgp

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/agent"
	"wayleave.dev/loadbalancer/bgp"
	"wayleave.dev/loadbalancer/bgp/speaker"
	"wayleave.dev/model"
)

// List implements agent.Lister.
func (f *Feature) List() agent.List {
	return agent.List{Name: "bgp", Text: sessions, Help: "BGP sessions of the node, and what they exchange"}
}

// Rows implements agent.Lister.
func (f *Feature) Rows(*agent.Node, model.Snapshot) any {
	if a := f.announcer.Load(); a != nil {
		return a.sup.Report().Sessions
	}
	return nil
}

// sessions lists sessions for people.
func sessions(raw json.RawMessage, now time.Time) (string, error) {
	var rows []bgp.SessionReport
	if raw != nil {
		if err := json.Unmarshal(raw, &rows); err != nil {
			return "", err
		}
	}
	if len(rows) == 0 {
		return "this node has no BGP session\n", nil
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SESSION\tPEER\tASN\tSTATE\tSINCE\tSENT\tRECEIVED\tACCEPTED\tRESTART\tNOTE")
	for _, s := range rows {
		since, peer := "", ""
		if !s.Since.IsZero() {
			since = now.Sub(s.Since).Round(time.Second).String()
		}
		if s.Addr.IsValid() {
			peer = s.Addr.String()
		}
		restart := "none"
		if s.GracefulRestart {
			restart = "graceful"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", s.Name, peer, s.ASN, s.State, since, s.Advertised,
			s.Received, s.Accepted, restart, s.Error)
	}
	err := t.Flush()
	return b.String(), err
}

// facts are for status.
func (a *announcer) facts() []string {
	r := a.sup.Report()
	up := 0
	for _, s := range r.Sessions {
		if s.State == bgp.Established {
			up++
		}
	}
	a.mu.Lock()
	announced := len(a.last.Paths)
	a.mu.Unlock()
	switch {
	case !a.planned():
		return []string{"no session yet: objects or the rules of Services are not complete"}
	case !r.Running:
		return []string{"the process bgp is starting"}
	}
	return []string{fmt.Sprintf("%d of %d sessions are established, %d prefixes are announced, %d paths were learned "+
		"(status --bgp lists sessions)", up, len(r.Sessions), announced, len(r.Routes))}
}

func (a *announcer) planned() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.has
}

// metrics are those of the process while it is there.
type metrics struct{ feature *Feature }

// Describe implements prometheus.Collector.
func (metrics) Describe(to chan<- *prometheus.Desc) {
	speaker.New(slog.New(slog.DiscardHandler)).Describe(to)
}

// Collect implements prometheus.Collector.
func (m metrics) Collect(to chan<- prometheus.Metric) {
	if a := m.feature.announcer.Load(); a != nil {
		a.sup.Collect(to)
	}
}
