package proxy

import (
	"context"
	"io"
	"sync"
)

// tunnels are the connections that were handed over to an upgraded protocol. No end of
// one is in sight when the proxy is to end, so somebody must know them.
type tunnels struct {
	mu   sync.Mutex
	open map[*tunnelled]struct{}
	none chan struct{} // closed when the last one ends; nil while nobody waits
}

type tunnelled struct{ client, server io.Closer }

// track knows a tunnel until done is called.
func (p *Proxy) track(client, server io.Closer) (done func()) {
	t := &tunnelled{client, server}
	p.tunnels.mu.Lock()
	defer p.tunnels.mu.Unlock()
	if p.tunnels.open == nil {
		p.tunnels.open = map[*tunnelled]struct{}{}
	}
	p.tunnels.open[t] = struct{}{}
	return func() {
		p.tunnels.mu.Lock()
		defer p.tunnels.mu.Unlock()
		delete(p.tunnels.open, t)
		if len(p.tunnels.open) == 0 && p.tunnels.none != nil {
			close(p.tunnels.none)
			p.tunnels.none = nil
		}
	}
}

// Tunnels is how many upgraded connections are open.
func (p *Proxy) Tunnels() int {
	p.tunnels.mu.Lock()
	defer p.tunnels.mu.Unlock()
	return len(p.tunnels.open)
}

// DrainTunnels waits until all upgraded connections have ended, and closes those that are
// left when ctx ends. It returns how many it closed. Calls do not overlap.
func (p *Proxy) DrainTunnels(ctx context.Context) (closed int) {
	p.tunnels.mu.Lock()
	if len(p.tunnels.open) == 0 {
		p.tunnels.mu.Unlock()
		return 0
	}
	none := make(chan struct{})
	p.tunnels.none = none
	p.tunnels.mu.Unlock()
	select {
	case <-none:
		return 0
	case <-ctx.Done():
	}
	p.tunnels.mu.Lock()
	defer p.tunnels.mu.Unlock()
	for t := range p.tunnels.open {
		_, _ = t.client.Close(), t.server.Close()
		closed++
	}
	p.tunnels.none = nil
	return closed
}
