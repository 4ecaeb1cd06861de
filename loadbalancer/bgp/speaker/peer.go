package speaker

import (
	"cmp"
	"time"

	"github.com/osrg/gobgp/v4/api"

	"wayleave.dev/loadbalancer/bgp"
)

const (
	// defaultConnect is the interval of attempts to connect.
	defaultConnect = 5 * time.Second
	// deferral is how long a restarted process waits for the routes of its peers before it announces its own
	// (RFC 4724, Selection_Deferral_Timer): briefly, because its own do not depend on theirs.
	deferral = 1
	// addPaths is the number of paths of a prefix that are sent to a peer with add-path.
	addPaths = 8
)

func families(s bgp.Session) (out []*api.AfiSafi) {
	limit := cmp.Or(s.MaxPrefixes, bgp.DefaultMaxPrefixes)
	add := func(afi api.Family_Afi) {
		f := &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}
		a := &api.AfiSafi{Config: &api.AfiSafiConfig{Family: f, Enabled: true},
			PrefixLimits: &api.PrefixLimit{Family: f, MaxPrefixes: limit}}
		if s.Restart > 0 {
			a.MpGracefulRestart = &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}}
		}
		if s.LongLived > 0 {
			a.LongLivedGracefulRestart = &api.LongLivedGracefulRestart{Config: &api.LongLivedGracefulRestartConfig{
				Enabled: true, RestartTime: seconds(s.LongLived)}}
		}
		if s.AddPath {
			a.AddPaths = &api.AddPaths{Config: &api.AddPathsConfig{Receive: true, SendMax: addPaths}}
		}
		out = append(out, a)
	}
	if s.V4 {
		add(api.Family_AFI_IP)
	}
	if s.V6 {
		add(api.Family_AFI_IP6)
	}
	return out
}

func seconds(d time.Duration) uint32 { return uint32(d / time.Second) }

func timers(s bgp.Session) *api.Timers {
	keepalive := s.Keepalive
	if keepalive == 0 {
		keepalive = s.Hold / 3
	}
	return &api.Timers{Config: &api.TimersConfig{HoldTime: uint64(seconds(s.Hold)),
		KeepaliveInterval: uint64(max(1, seconds(keepalive))),
		ConnectRetry:      uint64(seconds(cmp.Or(s.Connect, defaultConnect))), IdleHoldTimeAfterReset: 1}}
}

func restart(s bgp.Session, restarting bool) *api.GracefulRestart {
	if s.Restart == 0 {
		return nil
	}
	return &api.GracefulRestart{Enabled: true, RestartTime: seconds(s.Restart), DeferralTime: deferral,
		LonglivedEnabled: s.LongLived > 0, LocalRestarting: restarting}
}

func transport(s bgp.Session) *api.Transport {
	t := &api.Transport{PassiveMode: s.Passive, RemotePort: uint32(s.Port)}
	if s.Source.IsValid() {
		t.LocalAddress = s.Source.String()
	}
	return t
}

func ttlSecurity(s bgp.Session) *api.TtlSecurity {
	if s.TTLSecurity == 0 {
		return nil
	}
	return &api.TtlSecurity{Enabled: true, TtlMin: 256 - uint32(s.TTLSecurity)}
}

func multiHop(s bgp.Session) *api.EbgpMultihop {
	if s.MultiHop == 0 {
		return nil
	}
	return &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(s.MultiHop)}
}

func reflector(s bgp.Session) *api.RouteReflector {
	r := &api.RouteReflector{RouteReflectorClient: s.ReflectorClient}
	if s.ClusterID.IsValid() {
		r.RouteReflectorClusterId = s.ClusterID.String()
	}
	return r
}

// peerOf is the session in the terms of the library.
func peerOf(s bgp.Session, restarting bool) *api.Peer {
	return &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: s.Addr.String(), PeerAsn: s.ASN, LocalAsn: s.LocalASN,
			AuthPassword: s.Password, Description: s.Name},
		AfiSafis: families(s), Timers: timers(s), GracefulRestart: restart(s, restarting), Transport: transport(s),
		TtlSecurity: ttlSecurity(s), EbgpMultihop: multiHop(s),
		RouteReflector: reflector(s),
	}
}

// groupOf is a session with a Range in the terms of the library.
func groupOf(s bgp.Session) *api.PeerGroup {
	return &api.PeerGroup{
		Conf: &api.PeerGroupConf{PeerGroupName: s.Name, PeerAsn: s.ASN, LocalAsn: s.LocalASN, AuthPassword: s.Password,
			Description: s.Name},
		AfiSafis: families(s), Timers: timers(s), GracefulRestart: restart(s, false),
		Transport: &api.Transport{PassiveMode: true}, TtlSecurity: ttlSecurity(s), EbgpMultihop: multiHop(s),
		RouteReflector: reflector(s),
	}
}
