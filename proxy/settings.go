package proxy

import (
	"net/netip"

	"wayleave.dev/proxy/h1"
)

// Settings are the fields of a Proxy that may change while it runs.
type Settings struct {
	Timeouts Timeouts
	Tries    int
	Trusted  []netip.Prefix
	// ResponseHead bounds the heads of endpoints' responses over HTTP/2; upstream.Set.SetHead bounds those of HTTP/1.1.
	// The zero value means the default.
	ResponseHead h1.HeadLimits
	// Server is the value of the field Server in all responses; nil for the endpoints' own. HideServer removes the
	// field.
	Server     []byte
	HideServer bool
}

// Configure applies settings to later requests, in place of the fields of the same names. They must not be changed any
// more.
func (p *Proxy) Configure(s Settings) { p.settings.Store(&s) }

// current returns the current settings.
func (p *Proxy) current() Settings {
	if s := p.settings.Load(); s != nil {
		return *s
	}
	return Settings{Timeouts: p.Timeouts, Tries: p.Tries, Trusted: p.Trusted}
}
