package service

import (
	"context"
	"net/http"
	"net/netip"

	"wayleave.dev/agent"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/statusserver"
)

// metricsPath is the path of the metrics, and the nonResourceURL that their reader must be allowed to get.
const metricsPath = "/metrics"

// scrapePorts are the listeners for the metrics of all processes: one at each InternalIP of the node.
func scrapePorts(n *agent.Node) (out []statusserver.Port) {
	me, ok := n.Store.Snapshot().Node(n.Name)
	if n.Config.Metrics.Port == 0 || !ok {
		return nil
	}
	for _, a := range me.InternalIPs {
		out = append(out, statusserver.Port{Name: netip.AddrPortFrom(a, uint16(n.Config.Metrics.Port)).String(),
			Pages: map[string]statusserver.Page{metricsPath: statusserver.AllMetrics},
			Token: len(n.Config.Metrics.AllowFrom) == 0, Allowed: n.Config.Metrics.AllowFrom})
	}
	return out
}

// sources are the containers of the pod that have metrics, if they are served.
func sources(n *agent.Node) (out []statusserver.Source) {
	if n.Config.Metrics.Port == 0 {
		return nil
	}
	for _, f := range n.Features {
		if s, ok := f.(agent.Scraped); ok {
			out = append(out, s.Scraped())
		}
	}
	return out
}

// reviewer asks the API server whether a token may read the metrics.
func reviewer(n *agent.Node) statusserver.Reviewer {
	if n.Client == nil {
		return nil
	}
	return func(ctx context.Context, token string) int {
		verdict, err := n.Client.MayGet(ctx, token, metricsPath)
		if ctx.Err() == nil {
			n.SetCondition("readers of metrics", err)
		}
		switch {
		case err != nil:
			return http.StatusServiceUnavailable
		case verdict == kubesource.TokenAllowed:
			return http.StatusOK
		case verdict == kubesource.TokenDenied:
			return http.StatusForbidden
		}
		return http.StatusUnauthorized
	}
}
