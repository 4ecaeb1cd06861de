package source

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"wayleave.dev/api"
	"wayleave.dev/model"
)

var announced = map[string]model.BGPAddresses{"PodCIDR": model.AnnouncePodCIDRs,
	"LoadBalancerIP": model.AnnounceLoadBalancerIPs, "ExternalIP": model.AnnounceExternalIPs,
	"ClusterIP": model.AnnounceClusterIPs}

// BGPAdvertisement converts a BGPAdvertisement. With a problem it is invalid as a whole: routes without a community or
// a selector that was meant would reach further than intended.
func BGPAdvertisement(in *api.BGPAdvertisement) (*model.BGPAdvertisement, []model.Problem) {
	c := newChecker(api.BGPAdvertisementKind, &in.ObjectMeta)
	s := &in.Spec
	out := &model.BGPAdvertisement{Name: in.Name, UID: string(in.UID), Pools: slices.Clone(s.Pools),
		Peers:        slices.Clone(s.Peers),
		PoolsByLabel: c.selector("spec.poolSelector", s.PoolSelector), HasPoolsByLabel: s.PoolSelector != nil,
		Services:     c.selector("spec.serviceSelector", s.ServiceSelector),
		Namespaces:   c.selector("spec.namespaceSelector", s.NamespaceSelector),
		Nodes:        c.selector("spec.nodeSelector", s.NodeSelector),
		PeersByLabel: c.selector("spec.peerSelector", s.PeerSelector), HasPeersByLabel: s.PeerSelector != nil,
		Length4:   uint8(c.between("spec.aggregationLength", int64(deref(s.AggregationLength, 32)), 1, 32, 32)),
		Length6:   uint8(c.between("spec.aggregationLengthV6", int64(deref(s.AggregationLengthV6, 128)), 1, 128, 128)),
		LocalPref: c.attribute("spec.localPreference", s.LocalPreference), MED: c.attribute("spec.med", s.MED)}
	for i, name := range s.Addresses {
		kind, ok := announced[name]
		if !ok {
			c.bad(fmt.Sprintf("spec.addresses[%d]", i), "%q is not allowed; %s are", name,
				strings.Join(slices.Sorted(maps.Keys(announced)), ", "))
		}
		out.Addresses |= kind
	}
	if len(s.Addresses) == 0 {
		out.Addresses = model.AnnounceLoadBalancerIPs
	}
	for field, n := range map[string]*int32{"spec.aggregationLength": s.AggregationLength,
		"spec.aggregationLengthV6": s.AggregationLengthV6} {
		if n != nil && *n == 0 {
			c.bad(field, "0 is not allowed: that is the default route")
		}
	}
	c.length("spec.pools", len(s.Pools), maxNames)
	c.length("spec.peers", len(s.Peers), maxNames)
	c.length("spec.communities", len(s.Communities), maxCommunities)
	c.length("spec.largeCommunities", len(s.LargeCommunities), maxCommunities)
	for i, text := range s.Communities[:min(len(s.Communities), maxCommunities)] {
		if v, ok := c.community(fmt.Sprintf("spec.communities[%d]", i), text); ok {
			out.Communities = append(out.Communities, v)
		}
	}
	for i, text := range s.LargeCommunities[:min(len(s.LargeCommunities), maxCommunities)] {
		if v, ok := c.largeCommunity(fmt.Sprintf("spec.largeCommunities[%d]", i), text); ok {
			out.Large = append(out.Large, v)
		}
	}
	if p := s.LocalPreference; p != nil && *p == 0 {
		c.bad("spec.localPreference", "0 is not supported; 1 to 4294967295 are allowed")
	}
	out.Invalid = c.invalid()
	return out, c.problems
}

func (c *checker) attribute(field string, n *int64) *uint32 {
	if n == nil {
		return nil
	}
	if *n < 0 || *n > 1<<32-1 {
		c.bad(field, "%d is not allowed; 0 to 4294967295 are", *n)
		return nil
	}
	v := uint32(*n)
	return &v
}

// wellKnown are communities with a name of IANA's registry.
var wellKnown = map[string]uint32{"graceful-shutdown": 0xffff0000, "accept-own": 0xffff0001, "llgr-stale": 0xffff0006,
	"no-llgr": 0xffff0007, "blackhole": 0xffff029a, "no-export": 0xffffff01, "no-advertise": 0xffffff02,
	"no-export-subconfed": 0xffffff03, "no-peer": 0xffffff04}

// community parses "64512:100", a number or a well-known name.
func (c *checker) community(field, s string) (uint32, bool) {
	if v, ok := wellKnown[strings.ToLower(s)]; ok {
		return v, true
	}
	high, low, pair := strings.Cut(s, ":")
	if !pair {
		if v, err := strconv.ParseUint(s, 0, 32); err == nil {
			return uint32(v), true
		}
	} else {
		a, err1 := strconv.ParseUint(high, 10, 16)
		b, err2 := strconv.ParseUint(low, 10, 16)
		if err1 == nil && err2 == nil {
			return uint32(a<<16 | b), true
		}
	}
	c.bad(field,
		"%q is not a community; two numbers up to 65535 with a colon between (64512:100), a number, and %s are "+
			"allowed", s, strings.Join(slices.Sorted(maps.Keys(wellKnown)), ", "))
	return 0, false
}

func (c *checker) largeCommunity(field, s string) (out model.LargeCommunity, ok bool) {
	parts := strings.Split(s, ":")
	ok = len(parts) == len(out)
	for i := 0; ok && i < len(parts); i++ {
		v, err := strconv.ParseUint(parts[i], 10, 32)
		out[i], ok = uint32(v), err == nil
	}
	if !ok {
		c.bad(field, "%q is not a large community; three numbers up to 4294967295 with colons between "+
			"(4200000000:1:2) are allowed", s)
	}
	return out, ok
}
