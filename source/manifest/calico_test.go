package manifest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/model"
)

const calicoYAML = `apiVersion: v1
kind: List
items:
- apiVersion: crd.projectcalico.org/v1
  kind: BGPConfiguration
  metadata: {name: default, uid: a}
  spec:
    asNumber: 63400
    nodeToNodeMeshEnabled: false
    listenPort: 1179
    nodeMeshMaxRestartTime: 2m0s
    serviceLoadBalancerIPs: [{cidr: 203.0.113.0/24}]
    serviceClusterIPs: [{cidr: 10.96.0.0/12}]
- apiVersion: crd.projectcalico.org/v1
  kind: BGPPeer
  metadata: {name: tor-a}
  spec:
    peerIP: 192.0.2.1:1790
    asNumber: "64.1"
    nodeSelector: rack == 'a' && has(bgp) && zone not in {'x', 'y'}
    password: {secretKeyRef: {name: bgp, key: rack}}
    maxRestartTime: 30s
    ttlSecurity: 1
- apiVersion: crd.projectcalico.org/v1
  kind: BGPPeer
  metadata: {name: rr}
  spec: {nodeSelector: all(), peerSelector: has(route-reflector)}
- apiVersion: crd.projectcalico.org/v1
  kind: IPPool
  metadata: {name: default-ipv4-ippool}
  spec: {cidr: 10.244.0.0/16, ipipMode: Never, vxlanMode: Never, natOutgoing: true, blockSize: 26, nodeSelector: all(),
    allowedUses: [Workload, Tunnel]}
- apiVersion: crd.projectcalico.org/v1
  kind: IPPool
  metadata: {name: public}
  spec: {cidr: 203.0.113.0/24, allowedUses: [LoadBalancer]}
`

func TestCalicosBGPBecomesOurs(t *testing.T) {
	out, notes, err := Calico("x.yaml", strings.NewReader(calicoYAML))
	if err != nil {
		t.Fatal(err)
	}
	snap, problems, err := read(t, string(out))
	if err != nil || len(problems) > 0 {
		t.Fatalf("%v %v\n%s", err, problems, out)
	}
	c := snap.BGP()
	if c.ASN != 63400 || c.Port != 1179 || !c.Mesh.Enabled || !c.Mesh.HasReflectors ||
		c.Restart.Time != 2*time.Minute ||
		!c.Mesh.Reflectors.Matches(map[string]string{"route-reflector": ""}) || c.Mesh.Reflectors.Matches(nil) {
		t.Errorf("the configuration is %+v", c)
	}
	p, _ := snap.BGPPeer("tor-a")
	if p == nil || p.Address.String() != "192.0.2.1" || p.Port != 1790 || p.ASN != 64<<16|1 || p.TTLSecurity != 1 ||
		p.Password != (model.SecretKey{Name: "bgp", Key: "rack"}) || p.Restart.Time != 30*time.Second ||
		!p.Nodes.Matches(map[string]string{"rack": "a", "bgp": ""}) ||
		p.Nodes.Matches(map[string]string{"rack": "a"}) ||
		p.Nodes.Matches(map[string]string{"rack": "a", "bgp": "", "zone": "y"}) {
		t.Errorf("tor-a became %+v", p)
	}
	a, _ := snap.BGPAdvertisement("calico")
	if a == nil || a.Addresses != model.AnnouncePodCIDRs|model.AnnounceLoadBalancerIPs|model.AnnounceClusterIPs {
		t.Errorf("the advertisement is %+v", a)
	}
	if pool, _ := snap.AddressPool("public"); pool == nil || !pool.BGP || pool.L2.Enabled ||
		snap.Count(model.BGPPeerKind) != 1 ||
		snap.Count(model.AddressPoolKind) != 1 {
		t.Errorf("public became %+v", pool)
	}
	for _, want := range []string{"IPPool default-ipv4-ippool: spec: make the settings routing: bgp and " +
		"podnetwork.masquerade: true", "BGPPeer tor-a: spec.password: copy the Secret bgp",
		"BGPPeer rr: spec.peerSelector",
		"BGPConfiguration default: spec.serviceLoadBalancerIPs", "BGPConfiguration default: spec: needs the settings"} {
		if !slices.ContainsFunc(notes, func(n Note) bool { return strings.HasPrefix(n.String(), want) && !n.Lost }) {
			t.Errorf("no note says %q: %v", want, notes)
		}
	}
	if slices.ContainsFunc(notes, func(n Note) bool { return n.Lost }) {
		t.Errorf("lost: %v", notes)
	}
}

// Each field of Calico's kinds that has no equal is named, whether it is known or of a later version; a peer whose
// nodes cannot be selected is not printed.
func TestNoFieldOfCalicoIsLostInSilence(t *testing.T) {
	object := func(kind, name, spec string) string {
		return "{apiVersion: projectcalico.org/v3, kind: " + kind + ", metadata: {name: " + name +
			"}, spec: {" + spec + "}}\n"
	}
	const tor = "peerIP: 192.0.2.1, asNumber: 64512"
	for _, tc := range []struct{ in, out, without, note string }{
		{object("BGPPeer", "x", tor), "ebgpMultiHop: 255", "", ""},
		{object("BGPPeer", "x", "peerIP: '[2001:db8::1]:179', asNumber: 64512"), "address: 2001:db8::1", "", ""},
		{object("BGPPeer", "x", tor+", node: node1"), "kubernetes.io/hostname: node1", "", "BGPPeer x: spec.node"},
		{object("BGPPeer", "x", tor+", localASNumber: 65001"), "localASN: 65001", "", ""},
		{object("BGPPeer", "x", tor+", keepOriginalNextHop: true"), "", "", "lost BGPPeer x: spec.keepOriginalNextHop"},
		{object("BGPPeer", "x", tor+", filters: [a]"), "", "", "lost BGPPeer x: spec.filters"},
		{object("BGPPeer", "x", tor+", reachableBy: 192.0.2.9"), "", "", "lost BGPPeer x: spec.reachableBy"},
		{object("BGPPeer", "x", tor+", numAllowedLocalASNumbers: 1"), "", "",
			"lost BGPPeer x: spec.numAllowedLocalASNumbers"},
		{object("BGPPeer", "x", tor+", localWorkloadSelector: all()"), "", "",
			"lost BGPPeer x: spec.localWorkloadSelector"},
		{object("BGPPeer", "x", tor+`, nodeSelector: "rack == 'a' || rack == 'b'"`), "", "192.0.2.1",
			"lost BGPPeer x: spec.nodeSelector: the peer is not carried over"},
		{object("BGPPeer", "x", "peerSelector: all()"), "", "routeReflectorSelector",
			"lost BGPPeer x: spec.peerSelector"},
		{object("BGPPeer", "x", "peerIP: 192.0.2.1, asNumber: 1.2.3"), "", "", "lost BGPPeer x: spec.asNumber"},
		{object("BGPConfiguration", "default", "logSeverityScreen: Info"), "kind: BGPConfiguration", "", ""},
		{object("BGPConfiguration", "default", "communities: [{name: a, value: '1:2'}]"), "", "",
			"lost BGPConfiguration default: spec.communities"},
		{object("BGPConfiguration", "default", "prefixAdvertisements: [{cidr: 10.0.0.0/8}]"), "", "",
			"lost BGPConfiguration default: spec.prefixAdvertisements"},
		// What Calico's own programs write, and asks for nothing.
		{object("BGPConfiguration", "default", "prefixAdvertisements: [], communities: [], bindMode: None, "+
			"serviceLoadBalancerAggregation: Enabled"), "kind: BGPConfiguration", "", ""},
		{object("BGPPeer", "x", tor+", keepOriginalNextHop: false"), "address: 192.0.2.1", "", ""},
		{object("IPPool", "x", "cidr: 10.0.0.0/16, vxlanMode: Always, disableBGPExport: false, "+
			"assignmentMode: Automatic, allowedUses: [Workload, Tunnel]"), "", "",
			"IPPool x: spec: make the settings routing: vxlan"},
		{object("IPPool", "x", "cidr: 10.0.0.0/24, allowedUses: [LoadBalancer], assignmentMode: Manual"),
			"autoAssign: false", "", ""},
		{object("IPPool", "x", "cidr: 10.0.0.0/24, assignmentMode: Manual"), "", "",
			"lost IPPool x: spec.assignmentMode"},
		{object("IPPool", "x", "cidr: 10.0.0.0/24, assignmentMode: Never"), "", "",
			"lost IPPool x: spec.assignmentMode"},
		{"{apiVersion: operator.tigera.io/v1, kind: Installation, metadata: {name: default}}\n",
			"address: 198.51.100.1", "", "lost Installation default: kind: is not read"},
		{object("BGPConfiguration", "default", "bindMode: NodeIP"), "", "",
			"lost BGPConfiguration default: spec.bindMode"},
		{object("BGPConfiguration", "node.a", "asNumber: 1"), "", "asn: 1",
			"lost BGPConfiguration node.a: metadata.name"},
		{object("BGPFilter", "x", ""), "", "", "lost BGPFilter x: kind"},
		{object("IPPool", "x", "cidr: 10.0.0.0/16, vxlanMode: Always"), "", "",
			"IPPool x: spec: make the settings routing: vxlan"},
		{object("IPPool", "x", "cidr: 10.0.0.0/16, ipipMode: CrossSubnet"), "", "",
			"IPPool x: spec: make the settings routing: auto"},
		{object("IPPool", "x", "cidr: 10.0.0.0/16, nodeSelector: has(a)"), "", "", "lost IPPool x: spec.nodeSelector"},
		{object("IPPool", "x", "cidr: 10.0.0.0/16, disabled: true"), "", "", "IPPool x: spec.disabled"},
		{object("IPPool", "x", "cidr: 10.0.0.0/16, disableBGPExport: true"), "", "",
			"lost IPPool x: spec.disableBGPExport"},
	} {
		in := tc.in
		if !strings.Contains(in, "BGPPeer") {
			in += "---\n" + object("BGPPeer", "other", "peerIP: 198.51.100.1, asNumber: 64512")
		} else {
			in += "---\n" + object("BGPConfiguration", "default", "")
		}
		out, notes, err := Calico("x", strings.NewReader(in))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(out), tc.out) || tc.without != "" && strings.Contains(string(out), tc.without) {
			t.Errorf("%s\nbecame\n%s\nwant %q, without %q", in, out, tc.out, tc.without)
		}
		want, lost := strings.CutPrefix(tc.note, "lost ")
		found := tc.note == ""
		for _, n := range notes {
			found = found || strings.HasPrefix(n.String(), want) && n.Lost == lost
			if !lost && n.Lost {
				t.Errorf("%s\nlost %s", in, n)
			}
		}
		if !found {
			t.Errorf("%s: notes are %v, want %q", in, notes, tc.note)
		}
	}
	for in, want := range map[string]string{"a: [": "not YAML", "apiVersion: v1\n": "kind: is missing"} {
		if _, _, err := Calico("x", strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// Whatever the input is: what is printed is valid, but for what a note names.
func FuzzCalico(f *testing.F) {
	f.Add(calicoYAML)
	f.Fuzz(func(t *testing.T, in string) {
		out, notes, err := Calico("x", strings.NewReader(in))
		if err != nil || len(out) == 0 {
			return
		}
		_, problems, err := read(t, string(out))
		if (err != nil || len(problems) > 0) && !slices.ContainsFunc(notes, func(n Note) bool { return n.Lost }) {
			t.Errorf("%v %v\n%s", err, problems, out)
		}
	})
}
