package schema

import (
	"maps"
	"reflect"
	"slices"
)

// Certifies says whether a wildcard host may lend its certificate to a host below it: one of the
// same namespace, or an older one.
func (h *Host) Certifies(below *Host) bool {
	return h.Namespace == below.Namespace || h.Since < below.Since
}

// ChallengePrefix is where ACME servers ask for proof (RFC 8555, 8.3). Paths below it are
// served over plain HTTP, and no pattern that does not name it takes their requests.
const ChallengePrefix = "/.well-known/acme-challenge"

// Guarded says whether the path keeps requests out: it is closed, or its Options name sources,
// users or an authentication server. An option that keeps requests out belongs here.
func (p *Path) Guarded() bool { return p.Closed || p.Options != nil && p.Options.Guards() }

// Guards says whether the options let some clients in and others not.
func (o *Options) Guards() bool {
	return len(o.Sources) > 0 || len(o.Denied) > 0 || o.Auth != nil || o.AuthURL != nil
}

// Limits says whether the options, which may be nil, bound what a client may use.
func (o *Options) Limits() bool { return o != nil && (o.RPS > 0 || o.RPM > 0 || o.Exchanges > 0) }

// KeptBy says whether whom these options keep out the others keep out, too.
func (o *Options) KeptBy(by *Options) bool {
	if !o.Guards() {
		return true
	}
	every := by.AnyOf // what lets a client in alone must be the same
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

// LimitsAs says whether both bound what a client may use by the same numbers.
func (o *Options) LimitsAs(b *Options) bool {
	return o.RPS == b.RPS && o.RPM == b.RPM && o.Exchanges == b.Exchanges && slices.Equal(o.Unlimited, b.Unlimited)
}
