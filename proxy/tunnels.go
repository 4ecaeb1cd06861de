package proxy

// track counts a tunnel, a connection that has switched to another protocol, until done is called.
func (p *Proxy) track() (done func()) {
	p.tunnels.Add(1)
	return func() { p.tunnels.Add(-1) }
}

// Tunnels returns the number of open tunnels.
func (p *Proxy) Tunnels() int { return int(p.tunnels.Load()) }
