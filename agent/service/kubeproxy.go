package service

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/model"
)

// waitForKubeProxy waits until no other service proxy is alive on the node.
func waitForKubeProxy(ctx context.Context, n *agent.Node) error {
	const what = "kube-proxy"
	for ctx.Err() == nil {
		mode, found := kubeProxy(ctx, (&net.Dialer{}).DialContext)
		if !found {
			n.SetCondition(what, nil)
			n.Problems.Set("service", what, nil)
			return nil
		}
		err := fmt.Errorf("a service proxy (mode %s) answers on 127.0.0.1:10249 of this node: Wayleave does not "+
			"write beside it; remove kube-proxy, or set service.enabled to false", mode)
		n.SetCondition(what, err)
		n.Problems.Set("service", what, []model.Problem{n.Problem("", err.Error())})
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
	return ctx.Err()
}

// kubeProxy asks who serves :10249, where an older agent of ours says so.
func kubeProxy(ctx context.Context, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (
	mode string, found bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10249/proxyMode", nil)
	if err != nil {
		return "", false
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", false
	}
	defer resp.Body.Close()
	buf := make([]byte, 64)
	n, _ := resp.Body.Read(buf)
	return string(buf[:n]), resp.Header.Get("Server") != "wayleave"
}
