package manifest

import (
	"strings"
	"testing"
)

// Each field of MetalLB's kinds of BGP, as its API reference lists them, is in the output, or named: none is lost in
// silence.
func TestNoFieldOfMetalLBsBGPIsLostInSilence(t *testing.T) {
	const pool = "{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: lan, labels: {where: " +
		"here}}, spec: {addresses: [192.0.2.0/24]}}\n---\n"
	peer := func(spec string) string {
		return pool + "{apiVersion: metallb.io/v1beta2, kind: BGPPeer, metadata: {name: x}, spec: {myASN: 64500, " +
			spec +
			"}}\n"
	}
	const tor = "peerASN: 64512, peerAddress: 192.0.2.1"
	adv := func(spec string) string {
		return pool + "{apiVersion: metallb.io/v1beta1, kind: BGPAdvertisement, metadata: {name: x}, spec: {" + spec +
			"}}\n---\n{apiVersion: metallb.io/v1beta1, kind: Community, metadata: {name: c}, spec: {communities: " +
			"[{name: home, value: 'large:1:2:3'}]}}\n"
	}
	for _, tc := range []struct{ in, out, note string }{
		{peer(tor), "asn: 64500\n", ""},
		{peer(tor), "  - IPv4\n", ""},
		{peer(tor + ", dualStackAddressFamily: true"), "asn: 64512\n  gracefulRestart", ""},
		{peer("peerASN: 64512, peerAddress: '2001:db8::1'"), "  - IPv6\n", ""},
		{peer("dynamicASN: external, peerAddress: 192.0.2.1"), "asnType: External", ""},
		{peer("dynamicASN: internal, interface: eth1"), "interface: eth1", ""},
		{peer("dynamicASN: other, interface: eth1"), "", "lost BGPPeer x: spec.dynamicASN"},
		{peer(tor + ", peerPort: 1179"), "port: 1179", ""},
		{peer(tor + ", sourceAddress: 192.0.2.7"), "sourceAddress: 192.0.2.7", ""},
		{peer(tor + ", holdTime: 30s, keepaliveTime: 10s, connectTime: 5s"), "keepaliveTime: 10s", ""},
		{peer(tor + ", holdTime: 1s"), "", "lost BGPPeer x: spec.holdTime"},
		{peer(tor + ", ebgpMultiHop: true"), "ebgpMultiHop: 255", ""},
		{peer(tor + ", enableGracefulRestart: true"), "- IPv4\n", ""},
		{peer(tor), "enabled: false", ""},
		{peer(tor + ", disableMP: true"), "- IPv4\n", ""},
		{peer(tor + ", nodeSelectors: [{matchLabels: {rack: a}}, {matchLabels: {rack: b}}]"), "- a\n      - b", ""},
		{peer(tor + ", nodeSelectors: [{matchLabels: {rack: a}}, {matchLabels: {zone: b}}]"), "rack: a",
			"lost BGPPeer x: spec.nodeSelectors: only the first of 2"},
		{peer(tor + ", routerID: 1.1.1.1"), "", "lost BGPPeer x: spec.routerID"},
		{peer(tor + ", password: hunter2"), "", "lost BGPPeer x: spec.password"},
		{peer(tor + ", passwordSecret: {name: md5, namespace: metallb-system}"), "name: md5",
			"BGPPeer x: spec.passwordSecret: copy the Secret md5"},
		{peer(tor + ", bfdProfile: fast"), "", "lost BGPPeer x: spec.bfdProfile"},
		{peer(tor + ", vrf: red"), "", "lost BGPPeer x: spec.vrf"},
		{peer(tor + ", later: 1"), "", "lost BGPPeer x: spec.later"},
		{peer(tor) + "---\n{apiVersion: metallb.io/v1beta2, kind: BGPPeer, metadata: {name: y}, spec: {myASN: 64999, " +
			tor + "}}\n", "localASN: 64999", ""},
		{adv(""), "bgp:\n    enabled: true", ""},
		{adv("aggregationLength: 24, aggregationLengthV6: 64"), "aggregationLengthV6: 64", ""},
		{adv("localPref: 5"), "localPreference: 5", ""},
		{adv("communities: [home]"), "1:2:3", ""},
		{adv("communities: [away]"), "", "lost BGPAdvertisement x: spec.communities[0]"},
		{adv("communities: ['1:2']"), "1:2", ""},
		{adv("peers: [tor]"), "- tor", ""},
		{adv("ipAddressPools: [other]"), "- other", "BGPAdvertisement x: spec.ipAddressPools[0]: there is no"},
		{adv("ipAddressPoolSelectors: [{matchLabels: {where: here}}]"), "pools:\n  - lan", ""},
		{adv("ipAddressPoolSelectors: [{matchLabels: {where: there}}]"),
			"poolSelector:\n    matchLabels:\n      where: there",
			""},
		{adv("nodeSelectors: [{matchLabels: {rack: a}}]"), "rack: a", ""},
		{adv("serviceSelectors: [{matchLabels: {app: web}}]"), "app: web", ""},
		{adv("later: 1"), "", "lost BGPAdvertisement x: spec.later"},
	} {
		out, notes, err := MetalLB("x", strings.NewReader(tc.in))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(out), tc.out) {
			t.Errorf("%s\nbecame\n%s\nwithout %q", tc.in, out, tc.out)
		}
		want, lost := strings.CutPrefix(tc.note, "lost ")
		found := tc.note == ""
		for _, n := range notes {
			found = found || strings.HasPrefix(n.String(), want) && n.Lost == lost
			if tc.note == "" && n.Lost {
				t.Errorf("%s\nlost %s", tc.in, n)
			}
		}
		if !found || strings.Contains(string(out), "hunter2") {
			t.Errorf("%s: notes are %v, want %q", tc.in, notes, tc.note)
		}
	}
}
