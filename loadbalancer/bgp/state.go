package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// The bounds of a State. A State that exceeds them is refused completely.
const (
	// MaxSessions allows for a full mesh of 1,000 nodes.
	MaxSessions = 1024
	MaxPaths    = 1 << 16
	MaxClasses  = 256
	// DefaultMaxPrefixes is the maximum number of prefixes of one family that a session may send.
	DefaultMaxPrefixes = 10000
	// MaxRangeBits is the maximum number of host bits of Session.Range: 256 neighbours.
	MaxRangeBits = 8
	// maxPassword is TCP_MD5SIG_MAXKEYLEN of linux/tcp.h, in bytes.
	maxPassword = 80
	// minHold is in RFC 4271, section 4.2.
	minHold = 3 * time.Second
)

// State is the complete desired state of the process bgp.
type State struct {
	ASN uint32 `json:"asn"`
	// RouterID is an IPv4 address that is unique among the nodes.
	RouterID netip.Addr `json:"routerID"`
	// Port is where the process listens on the addresses Listen; 0 for not at all.
	Port   uint16       `json:"port"`
	Listen []netip.Addr `json:"listen"`
	// Restarting says that the node's rules in the kernel are those of an earlier process: peers keep the routes that
	// they have until the new process has announced its own (RFC 4724, bits R and F).
	Restarting bool      `json:"restarting"`
	Sessions   []Session `json:"sessions"`
	Classes    []Class   `json:"classes"`
	Paths      []Path    `json:"paths"`
	Imports    []Import  `json:"imports"`
}

// Session is a BGP session with one peer, or with all peers of a network.
type Session struct {
	// Name is unique. It is the kind and name of the object that asks for the session, such as "BGPPeer rack1".
	Name string `json:"name"`
	// One of Addr, Interface and Range is set. Addr has a zone if it is link-local.
	Addr netip.Addr `json:"addr,omitzero"`
	// Interface has exactly one neighbour, whose link-local address is read from the kernel's table of neighbours.
	Interface string `json:"interface,omitempty"`
	// Range is a network from which peers may connect.
	Range netip.Prefix `json:"range,omitzero"`
	// ASN is the peer's; 0 is any, or with External any but this node's.
	ASN      uint32 `json:"asn"`
	External bool   `json:"external,omitempty"`
	// LocalASN replaces State.ASN; 0 does not.
	LocalASN uint32     `json:"localASN,omitempty"`
	Port     uint16     `json:"port,omitempty"`
	Source   netip.Addr `json:"source,omitzero"`
	Password string     `json:"password,omitempty"`
	// TTLSecurity is the maximum distance of the peer in hops (RFC 5082), 0 for no check.
	TTLSecurity uint8 `json:"ttlSecurity,omitempty"`
	// MultiHop is the TTL of packets to an external peer, 0 for 1.
	MultiHop  uint8         `json:"multiHop,omitempty"`
	Hold      time.Duration `json:"hold"`
	Keepalive time.Duration `json:"keepalive,omitempty"`
	Connect   time.Duration `json:"connect,omitempty"`
	// Passive never connects to the peer.
	Passive bool `json:"passive,omitempty"`
	// Restart is how long the peer is to keep routes while the process restarts (RFC 4724), 0 for no graceful restart.
	Restart time.Duration `json:"restart,omitempty"`
	// LongLived continues that with the lowest preference (RFC 9494), 0 for not at all.
	LongLived time.Duration `json:"longLived,omitempty"`
	V4        bool          `json:"v4"`
	V6        bool          `json:"v6"`
	// AddPath exchanges several paths of a prefix (RFC 7911).
	AddPath bool `json:"addPath,omitempty"`
	// ReflectorClient makes this node a route reflector for the peer (RFC 4456). ClusterID is the zero Addr for the
	// router id.
	ReflectorClient bool       `json:"reflectorClient,omitempty"`
	ClusterID       netip.Addr `json:"clusterID,omitzero"`
	// MaxPrefixes bounds what the peer may send in each family: the session ends if it sends more. 0 is
	// DefaultMaxPrefixes.
	MaxPrefixes uint32 `json:"maxPrefixes,omitempty"`
	// NextHop4 and NextHop6 are the next hops of announced paths; the zero address is the session's own.
	NextHop4 netip.Addr `json:"nextHop4,omitzero"`
	NextHop6 netip.Addr `json:"nextHop6,omitzero"`
}

// Class is a row of the export policy: which sessions get the paths of the class, and with which attributes.
type Class struct {
	Name string `json:"name"`
	// Sessions are names.
	Sessions    []string    `json:"sessions"`
	Communities []uint32    `json:"communities,omitempty"`
	Large       [][3]uint32 `json:"large,omitempty"`
	// LocalPref is only sent to internal peers.
	LocalPref *uint32 `json:"localPref,omitempty"`
	MED       *uint32 `json:"med,omitempty"`
}

// Path is a prefix of this node. A session gets it with the attributes of the first class, in the order of
// State.Classes, that is in Classes and names the session.
type Path struct {
	Prefix  netip.Prefix `json:"prefix"`
	Classes []string     `json:"classes"`
}

// Import is a row of the import policy. The first row that matches decides; a prefix without a row is refused.
type Import struct {
	// Sessions are names; empty for all.
	Sessions []string      `json:"sessions,omitempty"`
	Prefixes []PrefixRange `json:"prefixes"`
	Accept   bool          `json:"accept"`
}

// PrefixRange are the prefixes in a network with Min to Max bits.
type PrefixRange struct {
	Prefix netip.Prefix `json:"prefix"`
	Min    uint8        `json:"min"`
	Max    uint8        `json:"max"`
}

// Exactly is the range of one prefix, and Within that of all prefixes in a network.
func Exactly(p netip.Prefix) PrefixRange {
	return PrefixRange{p.Masked(), uint8(p.Bits()), uint8(p.Bits())}
}

// Within is the range of all prefixes in a network, including itself.
func Within(p netip.Prefix) PrefixRange {
	return PrefixRange{p.Masked(), uint8(p.Bits()), uint8(p.Addr().BitLen())}
}

// Check returns what is wrong with a State.
func (s *State) Check() error {
	switch {
	case s.ASN == 0:
		return errors.New("asn: it is 0")
	case !s.RouterID.Is4() || s.RouterID.IsUnspecified():
		return fmt.Errorf("router id: %s is not an IPv4 address", s.RouterID)
	case len(s.Sessions) > MaxSessions:
		return fmt.Errorf("sessions: there are %d; %d are allowed", len(s.Sessions), MaxSessions)
	case len(s.Paths) > MaxPaths:
		return fmt.Errorf("paths: there are %d; %d are allowed", len(s.Paths), MaxPaths)
	case len(s.Classes) > MaxClasses:
		return fmt.Errorf("classes: there are %d; %d are allowed", len(s.Classes), MaxClasses)
	}
	names, addrs := map[string]bool{}, map[string]bool{}
	for _, p := range s.Sessions {
		if err := p.Check(); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		if names[p.Name] || addrs[p.remote()] {
			return fmt.Errorf("%s: another session has this name or peer %s", p.Name, p.remote())
		}
		names[p.Name], addrs[p.remote()] = true, true
	}
	for _, c := range s.Classes {
		if c.LocalPref != nil && *c.LocalPref == 0 {
			return fmt.Errorf("%s: local preference: 0 is not supported; 1 to 4294967295 are", c.Name)
		}
	}
	for _, p := range s.Paths {
		if !p.Prefix.IsValid() || p.Prefix != p.Prefix.Masked() || p.Prefix.Addr().Is4In6() {
			return fmt.Errorf("path %s: the prefix is invalid", p.Prefix)
		}
	}
	return nil
}

// remote is what identifies the peer.
func (s Session) remote() string {
	switch {
	case s.Interface != "":
		return s.Interface
	case s.Range.IsValid():
		return s.Range.String()
	}
	return s.Addr.String()
}

// Check returns what is wrong with a session.
func (s Session) Check() error {
	kinds := 0
	for _, set := range []bool{s.Addr.IsValid(), s.Interface != "", s.Range.IsValid()} {
		if set {
			kinds++
		}
	}
	switch {
	case s.Name == "":
		return errors.New("name: it is empty")
	case kinds != 1:
		return errors.New("peer: exactly one of address, interface and range must be set")
	case s.Addr.Is4In6() || s.Addr.IsMulticast() || s.Addr.IsUnspecified():
		return fmt.Errorf("address: %s cannot be that of a peer", s.Addr)
	case s.Addr.Is6() && s.Addr.IsLinkLocalUnicast() != (s.Addr.Zone() != ""):
		return fmt.Errorf("address: %s: a link-local address, and no other, needs its interface", s.Addr)
	case s.Range.IsValid() && (s.Range != s.Range.Masked() || s.Range.Addr().Is4In6()):
		return fmt.Errorf("range: %s is no network", s.Range)
	case s.Range.IsValid() && s.Range.Addr().BitLen()-s.Range.Bits() > MaxRangeBits:
		return fmt.Errorf("range: %s has more than %d addresses", s.Range, 1<<MaxRangeBits)
	case len(s.Password) > maxPassword:
		return fmt.Errorf("password: it has %d bytes; %d are allowed", len(s.Password), maxPassword)
	case s.TTLSecurity > 0 && s.MultiHop > 0:
		return errors.New("ttlSecurity and multiHop exclude each other")
	case s.Hold < minHold || s.Hold > 65535*time.Second:
		return fmt.Errorf("hold time: it is %s; %s to %s are allowed", s.Hold, minHold, 65535*time.Second)
	case s.Keepalive > s.Hold/2:
		return fmt.Errorf("keepalive: %s is more than half of the hold time %s", s.Keepalive, s.Hold)
	case s.Restart < 0 || s.Restart > 4095*time.Second:
		return fmt.Errorf("restart time: it is %s; up to %s is allowed", s.Restart, 4095*time.Second)
	case s.LongLived < 0 || s.LongLived > (1<<24-1)*time.Second || s.LongLived > 0 && s.Restart == 0:
		return fmt.Errorf("long-lived: it is %s; it needs a restart time, and up to 4660 h is allowed", s.LongLived)
	case s.NextHop4.IsValid() && !s.NextHop4.Is4() || s.NextHop6.IsValid() && !s.NextHop6.Is6():
		return fmt.Errorf("next hops: %s and %s are not of their families", s.NextHop4, s.NextHop6)
	case !s.V4 && !s.V6:
		return errors.New("families: there is none")
	}
	return nil
}

// Equal compares two states.
func (s *State) Equal(o *State) bool {
	return s.ASN == o.ASN && s.RouterID == o.RouterID && s.Port == o.Port && slices.Equal(s.Listen, o.Listen) &&
		s.Restarting == o.Restarting && slices.Equal(s.Sessions, o.Sessions) &&
		slices.EqualFunc(s.Classes, o.Classes, Class.Equal) && slices.EqualFunc(s.Paths, o.Paths, Path.Equal) &&
		slices.EqualFunc(s.Imports, o.Imports, Import.Equal)
}

// Equal compares two classes.
func (c Class) Equal(o Class) bool {
	return c.Name == o.Name && slices.Equal(c.Sessions, o.Sessions) && slices.Equal(c.Communities, o.Communities) &&
		slices.Equal(c.Large, o.Large) && equalPointer(c.LocalPref, o.LocalPref) && equalPointer(c.MED, o.MED)
}

// Equal compares two paths.
func (p Path) Equal(o Path) bool { return p.Prefix == o.Prefix && slices.Equal(p.Classes, o.Classes) }

// Equal compares two rows.
func (i Import) Equal(o Import) bool {
	return i.Accept == o.Accept && slices.Equal(i.Sessions, o.Sessions) && slices.Equal(i.Prefixes, o.Prefixes)
}

func equalPointer(a, b *uint32) bool { return a == b || a != nil && b != nil && *a == *b }
