package proxy

// track counts a tunnel, a connection that was handed over to an upgraded protocol, until done is called.
func (p *Proxy) track() (done func()) {
	p.tunnels.Add(1)
	return func() { p.tunnels.Add(-1) }
}

// Tunnels is how many upgraded connections are open.
func (p *Proxy) Tunnels() int { return int(p.tunnels.Load()) }
