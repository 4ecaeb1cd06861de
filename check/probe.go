package check

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// ProbeWithin is how long a try of one server may take.
const ProbeWithin = 5 * time.Second

// Try asks the DNS servers of the cluster for the Service kubernetes, from the network namespace of the caller.
func Try(ctx context.Context, servers []netip.Addr, domain string) Probe {
	if domain == "" {
		domain = "cluster.local"
	}
	p := Probe{DNS: map[netip.Addr]string{}, Name: "kubernetes.default.svc." + domain}
	for _, s := range servers {
		p.DNS[s] = ""
		if err := lookup(ctx, netip.AddrPortFrom(s, 53), p.Name); err != nil {
			p.DNS[s] = err.Error()
		}
	}
	return p
}

func lookup(ctx context.Context, server netip.AddrPort, name string) error {
	ctx, cancel := context.WithTimeout(ctx, ProbeWithin)
	defer cancel()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server.String())
	}}
	_, err := r.LookupNetIP(ctx, "ip", name+".")
	return err
}
