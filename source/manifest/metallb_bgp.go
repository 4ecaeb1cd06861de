package manifest

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"wayleave.dev/api"
	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/model"
	"wayleave.dev/source"
)

// metallbPeer is a BGPPeer (v1beta2).
type metallbPeer struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            metallbPeerSpec   `json:"spec"`
	Status          any               `json:"status"`
}

type metallbPeerSpec struct {
	MyASN                  int64                  `json:"myASN"`
	PeerASN                int64                  `json:"peerASN"`
	DynamicASN             string                 `json:"dynamicASN"`
	PeerAddress            string                 `json:"peerAddress"`
	Interface              string                 `json:"interface"`
	SourceAddress          string                 `json:"sourceAddress"`
	PeerPort               int32                  `json:"peerPort"`
	HoldTime               *metav1.Duration       `json:"holdTime"`
	KeepaliveTime          *metav1.Duration       `json:"keepaliveTime"`
	ConnectTime            *metav1.Duration       `json:"connectTime"`
	RouterID               string                 `json:"routerID"`
	NodeSelectors          []metav1.LabelSelector `json:"nodeSelectors"`
	Password               string                 `json:"password"`
	PasswordSecret         corev1.SecretReference `json:"passwordSecret"`
	BFDProfile             string                 `json:"bfdProfile"`
	EnableGracefulRestart  bool                   `json:"enableGracefulRestart"`
	EBGPMultiHop           bool                   `json:"ebgpMultiHop"`
	VRF                    string                 `json:"vrf"`
	DisableMP              bool                   `json:"disableMP"`
	DualStackAddressFamily bool                   `json:"dualStackAddressFamily"`
}

// metallbBGP is a BGPAdvertisement.
type metallbBGP struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            metallbBGPSpec    `json:"spec"`
	Status          any               `json:"status"`
}

type metallbBGPSpec struct {
	AggregationLength      *int32                 `json:"aggregationLength"`
	AggregationLengthV6    *int32                 `json:"aggregationLengthV6"`
	LocalPref              int64                  `json:"localPref"`
	Communities            []string               `json:"communities"`
	IPAddressPools         []string               `json:"ipAddressPools"`
	IPAddressPoolSelectors []metav1.LabelSelector `json:"ipAddressPoolSelectors"`
	NodeSelectors          []metav1.LabelSelector `json:"nodeSelectors"`
	Peers                  []string               `json:"peers"`
	ServiceSelectors       []metav1.LabelSelector `json:"serviceSelectors"`
}

// metallbCommunity is a Community: names for values.
type metallbCommunity struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		Communities []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"communities"`
	} `json:"spec"`
	Status any `json:"status"`
}

// maxTTL is the TTL of MetalLB's packets to a peer with ebgpMultiHop.
const maxTTL = 255

// bgpObjects returns the objects that say what MetalLB's said by BGP.
func (m *metallb) bgpObjects() (out []object) {
	if len(m.peers) > 0 {
		m.note("BGPPeer", m.peers[0].Metadata.Name, "spec", "needs the setting bgp.enabled: true")
	}
	asn := m.localASN()
	if asn != 0 {
		out = append(out, object{api.BGPConfigurationKind, model.BGPDefault, api.BGPConfigurationSpec{ASN: asn}})
	}
	for i := range m.peers {
		p := &m.peers[i]
		spec := m.peer(p, asn)
		_, problems := source.BGPPeer(&api.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: p.Metadata.Name}, Spec: spec})
		m.invalid("BGPPeer", p.Metadata.Name, problems)
		out = append(out, object{api.BGPPeerKind, p.Metadata.Name, spec})
	}
	for i := range m.bgp {
		a := &m.bgp[i]
		spec := m.advertisement(a)
		_, problems := source.BGPAdvertisement(&api.BGPAdvertisement{
			ObjectMeta: metav1.ObjectMeta{Name: a.Metadata.Name}, Spec: spec})
		m.invalid("BGPAdvertisement", a.Metadata.Name, problems)
		out = append(out, object{api.BGPAdvertisementKind, a.Metadata.Name, spec})
	}
	return out
}

func (m *metallb) invalid(kind, name string, problems []model.Problem) {
	for _, q := range problems {
		m.lost(kind, name, q.Field, "%s", q.Reason)
	}
}

// localASN is that of most peers; the others name their own.
func (m *metallb) localASN() (asn int64) {
	count := map[int64]int{}
	for _, p := range m.peers {
		count[p.Spec.MyASN]++
		if n := count[p.Spec.MyASN]; n > count[asn] || asn == 0 {
			asn = p.Spec.MyASN
		}
	}
	return asn
}

func (m *metallb) peer(p *metallbPeer, asn int64) api.BGPPeerSpec {
	const kind = "BGPPeer"
	s, name := &p.Spec, p.Metadata.Name
	out := api.BGPPeerSpec{Address: s.PeerAddress, Interface: s.Interface, ASN: s.PeerASN, Port: s.PeerPort,
		SourceAddress: s.SourceAddress, NodeSelector: m.nodes(kind, name, s.NodeSelectors),
		BGPTimers: api.BGPTimers{HoldTime: s.HoldTime, KeepaliveTime: s.KeepaliveTime, ConnectTime: s.ConnectTime}}
	switch s.DynamicASN {
	case "internal":
		out.ASNType = "Internal"
	case "external":
		out.ASNType = "External"
	case "":
	default:
		m.lost(kind, name, "spec.dynamicASN", "is not carried over: %q is unknown", s.DynamicASN)
	}
	if s.MyASN != asn {
		out.LocalASN = s.MyASN
	}
	if s.EBGPMultiHop {
		out.EBGPMultiHop = maxTTL
	}
	if !s.EnableGracefulRestart {
		off := false
		out.GracefulRestart = &api.GracefulRestart{Enabled: &off}
	}
	// MetalLB exchanges the routes of one family in a session with an address, unless asked for both.
	if a, err := apiaddr.ParseAddr(s.PeerAddress); err == nil && !s.DualStackAddressFamily {
		out.Families = []string{string(corev1.IPv4Protocol)}
		if a.Is6() {
			out.Families[0] = string(corev1.IPv6Protocol)
		}
	}
	if s.PasswordSecret.Name != "" {
		out.PasswordSecret = &api.SecretKey{Name: s.PasswordSecret.Name}
		m.note(kind, name, "spec.passwordSecret", "copy the Secret %s to the namespace %s", s.PasswordSecret.Name,
			model.PeersNamespace)
	}
	for field, text := range map[string]string{"password": s.Password, "routerID": s.RouterID,
		"bfdProfile": s.BFDProfile,
		"vrf":        s.VRF} {
		if text != "" {
			m.lost(kind, name, "spec."+field, "is not carried over: %s", peerAdvice[field])
		}
	}
	return out
}

// peerAdvice is what to do about fields of a BGPPeer that ours does not have.
var peerAdvice = map[string]string{
	"password": "put it into a Secret of the namespace " + model.PeersNamespace +
		", and name that in spec.passwordSecret",
	"routerID":   "set the annotation " + api.RouterIDAnnotation + " of nodes",
	"bfdProfile": "BFD is not supported; a short holdTime notices a dead peer",
	"vrf":        "VRFs are not supported",
}

// nodes returns one selector for a list. Without an equal one the first is kept: fewer nodes then have the session.
func (m *metallb) nodes(kind, name string, list []metav1.LabelSelector) *metav1.LabelSelector {
	if len(list) == 0 {
		return nil
	}
	if u, ok := union(list); ok {
		return u
	}
	m.lost(kind, name, "spec.nodeSelectors",
		"only the first of %d selectors is carried over: no selector equals all of "+
			"them; write an object for each", len(list))
	return &list[0]
}

func (m *metallb) advertisement(a *metallbBGP) api.BGPAdvertisementSpec {
	const kind = "BGPAdvertisement"
	s, name := &a.Spec, a.Metadata.Name
	out := api.BGPAdvertisementSpec{AggregationLength: s.AggregationLength, AggregationLengthV6: s.AggregationLengthV6,
		Peers: s.Peers, Pools: slices.Clone(s.IPAddressPools), NodeSelector: m.nodes(kind, name, s.NodeSelectors),
		ServiceSelector: m.anyOf(kind, name, "spec.serviceSelectors", s.ServiceSelectors)}
	if s.LocalPref != 0 {
		out.LocalPreference = &s.LocalPref
	}
	for i, c := range s.Communities {
		value, known := m.community(c)
		if !known {
			m.lost(kind, name, fmt.Sprintf("spec.communities[%d]", i),
				"is not carried over: no Community of the input "+
					"has the name %s", c)
			continue
		}
		if large, ok := strings.CutPrefix(value, "large:"); ok {
			out.LargeCommunities = append(out.LargeCommunities, large)
		} else {
			out.Communities = append(out.Communities, value)
		}
	}
	// An AddressPool of the output has no labels: the pools are named.
	for _, p := range m.pools {
		if len(s.IPAddressPoolSelectors) > 0 && a.of(p.Metadata) && !slices.Contains(out.Pools, p.Metadata.Name) {
			out.Pools = append(out.Pools, p.Metadata.Name)
		}
	}
	m.missing(kind, name, s.IPAddressPools, s.IPAddressPoolSelectors)
	if len(s.IPAddressPoolSelectors) > 0 && len(out.Pools) == 0 {
		// No pool at all would mean all of them.
		out.PoolSelector = &s.IPAddressPoolSelectors[0]
	}
	return out
}

// community resolves a name; a value is its own.
func (m *metallb) community(text string) (value string, ok bool) {
	for _, list := range m.communities {
		for _, c := range list.Spec.Communities {
			if c.Name == text {
				return c.Value, true
			}
		}
	}
	return text, strings.Contains(text, ":")
}

// of reports whether the advertisement is for the pool: by name or label, or because it names none.
func (a metallbBGP) of(pool metav1.ObjectMeta) bool {
	return forPool(pool, a.Spec.IPAddressPools, a.Spec.IPAddressPoolSelectors)
}

func forPool(pool metav1.ObjectMeta, names []string, selectors []metav1.LabelSelector) bool {
	if len(names)+len(selectors) == 0 || slices.Contains(names, pool.Name) {
		return true
	}
	return slices.ContainsFunc(selectors, func(s metav1.LabelSelector) bool {
		sel, err := metav1.LabelSelectorAsSelector(&s)
		return err == nil && sel.Matches(labels.Set(pool.Labels))
	})
}
