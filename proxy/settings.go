package proxy

import (
	"net/netip"

	"wayleave.dev/proxy/h1"
)

// Settings are what of a Proxy may change while it works.
type Settings struct {
	Timeouts Timeouts
	Tries    int
	Trusted  []netip.Prefix
	// ResponseHead bounds the heads of endpoints' responses that come by HTTP/2; those of HTTP/1.1
	// are bounded by upstream.Set.SetHead. The zero value asks for the default.
	ResponseHead h1.HeadLimits
	// Server is the value of the field Server in all responses; nil for what endpoints say.
	// HideServer takes the field out.
	Server     []byte
	HideServer bool
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
