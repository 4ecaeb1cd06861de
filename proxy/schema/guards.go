package schema

import (
	"maps"
	"reflect"
	"slices"
)

// Certifies reports whether a wildcard host may provide its certificate to a host below it: one of the same namespace,
// or a younger one.
func (h *Host) Certifies(below *Host) bool {
	return h.Namespace == below.Namespace || h.Since < below.Since
}

// ChallengePrefix is where ACME servers request their challenge (RFC 8555, 8.3). Paths below it are served over plain
// HTTP, and patterns get their requests only if they name the prefix.
const ChallengePrefix = "/.well-known/acme-challenge"

// Guarded reports whether the path restricts access: it is closed, or its Options contain sources, users or an
// authentication server. An option that restricts access belongs here.
func (p *Path) Guarded() bool { return p.Closed || p.Options != nil && p.Options.Guards() }

// Guards reports whether the options admit some clients and refuse others.
func (o *Options) Guards() bool {
	return len(o.Sources) > 0 || len(o.Denied) > 0 || o.Auth != nil || o.AuthURL != nil
}

// Limits reports whether the options, which may be nil, bound a client's usage.
func (o *Options) Limits() bool { return o != nil && (o.RPS > 0 || o.RPM > 0 || o.Exchanges > 0) }

// KeptBy reports whether the other options refuse all clients that these options refuse.
func (o *Options) KeptBy(by *Options) bool {
	if !o.Guards() {
		return true
	}
	every := by.AnyOf // conditions that admit a client by themselves must be equal
	if every && !o.AnyOf {
		return false
	}
	return (!every && len(o.Sources) == 0 || slices.Equal(by.Sources, o.Sources)) &&
		(!every && len(o.Denied) == 0 || slices.Equal(by.Denied, o.Denied)) &&
		(!every && o.Auth == nil || sameUsers(by.Auth, o.Auth)) &&
		(!every && o.AuthURL == nil || reflect.DeepEqual(by.AuthURL, o.AuthURL))
}

func sameUsers(a, b *Auth) bool {
	return a == b || a != nil && b != nil && a.Realm == b.Realm && maps.Equal(a.Users, b.Users)
}

// LimitsAs reports whether both options have the same limits of a client's usage.
func (o *Options) LimitsAs(b *Options) bool {
	return o.RPS == b.RPS && o.RPM == b.RPM && o.Exchanges == b.Exchanges && slices.Equal(o.Unlimited, b.Unlimited)
}
