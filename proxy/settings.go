package proxy

import "net/netip"

// Settings are what of a Proxy may change while it works.
type Settings struct {
	Timeouts Timeouts
	Tries    int
	Trusted  []netip.Prefix
}

// Configure puts settings into force, in place of the fields of those names, for requests
// that come. They must not be changed any more.
func (p *Proxy) Configure(s Settings) { p.settings.Store(&s) }

// current are the settings in force.
func (p *Proxy) current() Settings {
	if s := p.settings.Load(); s != nil {
		return *s
	}
	return Settings{Timeouts: p.Timeouts, Tries: p.Tries, Trusted: p.Trusted}
}
