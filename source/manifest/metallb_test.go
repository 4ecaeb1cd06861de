package manifest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/model"
)

const metallbYAML = `apiVersion: v1
kind: List
items:
- apiVersion: metallb.io/v1beta1
  kind: IPAddressPool
  metadata: {name: lan, namespace: metallb-system, labels: {where: here}, resourceVersion: "7"}
  spec:
    addresses: [192.0.2.1/24, 198.51.100.10-198.51.100.20, "2001:db8::/64"]
    autoAssign: false
    avoidBuggyIPs: true
    serviceAllocation:
      priority: 10
      namespaces: [a, b]
      serviceSelectors:
      - matchLabels: {app: web}
      - matchLabels: {app: db}
- apiVersion: metallb.io/v1beta1
  kind: IPAddressPool
  metadata: {name: routed, namespace: metallb-system}
  spec: {addresses: [203.0.113.0/24]}
- apiVersion: metallb.io/v1beta2
  kind: BGPPeer
  metadata: {name: tor}
  spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.254, holdTime: 9s, passwordSecret: {name: md5}}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: l2}
spec:
  ipAddressPoolSelectors: [{matchLabels: {where: here}}]
  interfaces: [eth1]
  nodeSelectors: [{matchLabels: {rack: "1"}}]
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: bgp}
spec:
  ipAddressPools: [routed]
  communities: [private, 64500:7, "large:64500:1:2"]
  localPref: 100
  aggregationLength: 24
  peers: [tor]
---
apiVersion: metallb.io/v1beta1
kind: Community
metadata: {name: c}
spec: {communities: [{name: private, value: "64500:100"}]}
`

func TestMetalLBsPoolsBecomeOurs(t *testing.T) {
	out, notes, err := MetalLB("x.yaml", strings.NewReader(metallbYAML))
	if err != nil {
		t.Fatal(err)
	}
	snap, problems, err := read(t, string(out))
	if err != nil || len(problems) > 0 {
		t.Fatalf("%v %v\n%s", err, problems, out)
	}
	lan, _ := snap.AddressPool("lan")
	if len(lan.Ranges) != 3 || lan.AutoAssign || !lan.AvoidBuggy || !lan.L2.Enabled || len(lan.L2.Interfaces) != 1 ||
		!lan.L2.Nodes.Matches(map[string]string{"rack": "1"}) || lan.L2.Nodes.Matches(nil) ||
		!lan.Namespaces.Matches(map[string]string{"kubernetes.io/metadata.name": "b"}) ||
		lan.Namespaces.Matches(map[string]string{"kubernetes.io/metadata.name": "c"}) ||
		!lan.Services.Matches(map[string]string{"app": "web"}) ||
		!lan.Services.Matches(map[string]string{"app": "db"}) || lan.Services.Matches(map[string]string{"app": "x"}) {
		t.Errorf("lan became %+v", lan)
	}
	if routed, _ := snap.AddressPool("routed"); routed == nil || routed.L2.Enabled || !routed.BGP ||
		!routed.AutoAssign ||
		!routed.Services.Matches(nil) {
		t.Errorf("routed became %+v", routed)
	}
	if lan.BGP {
		t.Error("lan is announced by BGP")
	}
	tor, _ := snap.BGPPeer("tor")
	adv, _ := snap.BGPAdvertisement("bgp")
	if tor == nil || tor.ASN != 64512 || tor.LocalASN != 0 || snap.BGP().ASN != 64500 ||
		tor.Timers.Hold != 9*time.Second ||
		tor.Password.Name != "md5" || tor.IPv6 || tor.Restart == nil || tor.Restart.Enabled {
		t.Errorf("tor became %+v with %+v", tor, snap.BGP())
	}
	if adv == nil || !slices.Equal(adv.Pools, []string{"routed"}) || *adv.LocalPref != 100 || adv.Length4 != 24 ||
		!slices.Equal(adv.Communities, []uint32{64500<<16 | 100, 64500<<16 | 7}) || len(adv.Large) != 1 {
		t.Errorf("bgp became %+v", adv)
	}
	want := []string{
		"IPAddressPool lan: spec.addresses[0]: 192.0.2.1/24 has host bits set and became 192.0.2.0/24",
		"IPAddressPool lan: spec.serviceAllocation.priority: is not carried over",
		"IPAddressPool routed: spec: no L2Advertisement is for it", "BGPPeer tor: spec: needs the setting bgp.enabled",
		"BGPPeer tor: spec.passwordSecret: copy the Secret md5 to the namespace wayleave-peers",
	}
	if len(notes) != len(want) {
		t.Fatalf("notes are\n%s", notes)
	}
	for i := range want {
		if !strings.HasPrefix(notes[i].String(), want[i]) {
			t.Errorf("note %q, want %q", notes[i], want[i])
		}
	}
}

func TestWhatIsNotMetalLBs(t *testing.T) {
	for in, want := range map[string]string{
		"apiVersion: v1\n": "x.yaml: document 1: kind: is missing",
		"a: [":             "x.yaml: document 1: not YAML",
		"apiVersion: v1\nkind: List\nitems: [{apiVersion: v1}]\n": "items[0]: kind",
		"apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: x}\n" +
			"spec: {addresses: 1}": "cannot unmarshal",
	} {
		if _, _, err := MetalLB("x.yaml", strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
	if out, notes, err := MetalLB("x.yaml", strings.NewReader("# nothing\n")); err != nil || len(out) > 0 ||
		len(notes) != 1 {
		t.Errorf("nothing became %q %v %v", out, notes, err)
	}
	// Other objects are named, and the rest is read.
	out, notes, err := MetalLB("x", strings.NewReader("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, "+
		"kind: Pod, metadata: {name: p}}\n- {apiVersion: frrk8s.metallb.io/v1beta1, kind: FRRConfiguration, metadata: "+
		"{name: f}}\n- {apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: x}, spec: {addresses: "+
		"[192.0.2.0/28]}}\n"))
	if err != nil || !strings.Contains(string(out), "192.0.2.0/28") || len(notes) != 3 || !notes[0].Lost ||
		notes[0].String() != `Pod p: kind: is not read: apiVersion "v1" is not MetalLB's` || !notes[1].Lost {
		t.Errorf("other objects: %s %v %v", out, notes, err)
	}
	// Bad addresses are named, and the pool is printed as it is: its condition says the same.
	_, notes, err = MetalLB("x", strings.NewReader(
		"apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: x}\nspec: {addresses: [lan]}\n"))
	if err != nil || len(notes) != 2 || !strings.Contains(notes[1].String(),
		`spec.addresses[0]: "lan" is not an IP address`) {
		t.Errorf("%v %v", notes, err)
	}
}

// Pools of public reports.
func TestReportsOfMetalLBsPools(t *testing.T) {
	for _, tc := range []struct{ report, spec, want, without string }{
		{"metallb#2221", "addresses: [172.30.2.70-172.30.2.99], autoAssign: false",
			"addresses:\n  - 172.30.2.70-172.30.2.99\n  autoAssign: false\n", "avoidBuggyAddresses"},
		{"metallb#1684", "addresses: [65.108.66.126/29]", "addresses:\n  - 65.108.66.120/29\n", "avoidBuggyAddresses"},
		{"metallb#1515", "addresses: [10.0.1.0/24], avoidBuggyIPs: true", "avoidBuggyAddresses: true", "autoAssign"},
		{"metallb#1513", "addresses: [10.100.0.1-10.100.0.254, 10.100.1.1-10.100.1.254], autoAssign: true",
			"addresses:\n  - 10.100.0.1-10.100.0.254\n  - 10.100.1.1-10.100.1.254\n  autoAssign: true\n",
			"avoidBuggyAddresses"},
	} {
		out, notes, err := MetalLB("x", strings.NewReader("apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\n"+
			"metadata: {name: x}\nspec: {"+tc.spec+"}\n"))
		if err != nil || !strings.Contains(string(out), tc.want) || strings.Contains(string(out), tc.without) {
			t.Errorf("%s: %v\n%s\nwant %q", tc.report, err, out, tc.want)
		}
		for _, n := range notes {
			if n.Lost {
				t.Errorf("%s: lost %s", tc.report, n)
			}
		}
	}
}

// A pool whose serviceAllocation selects nothing is for Services that request it, as in MetalLB (metallb#2003).
func TestAPoolThatSelectsNoService(t *testing.T) {
	for spec, want := range map[string]bool{"{}": true, "{priority: 50}": true, "{namespaces: []}": true,
		"{namespaces: [a]}": false, "{serviceSelectors: [{matchLabels: {a: b}}]}": false} {
		out, _, err := MetalLB("x", strings.NewReader("apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: "+
			"{name: x}\nspec: {addresses: [192.0.2.0/28], autoAssign: true, serviceAllocation: "+spec+"}\n"))
		if got := strings.Contains(string(out), "autoAssign: false"); err != nil || got != want {
			t.Errorf("%s: %v\n%s", spec, err, out)
		}
	}
}

// Each field of MetalLB's kinds, as its API reference lists them, is in the output, or named: none is
// lost in silence. lost says that the command fails.
func TestNoFieldOfMetalLBIsLostInSilence(t *testing.T) {
	const pool, l2 = "{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: lan, labels: {where: " +
		"here}}, spec: {addresses: [192.0.2.0/24]%s}}\n---\n",
		"{apiVersion: metallb.io/v1beta1, kind: L2Advertisement, metadata: {name: l2}, spec: {interfaces: " +
			"[eth0]%s}}\n---\n"
	other := func(kind, spec string) string {
		return fmt.Sprintf(pool, "") + fmt.Sprintf(l2, "") + "{apiVersion: metallb.io/v1beta1, kind: " + kind +
			", metadata: {name: x}, spec: {" + spec + "}}\n"
	}
	for _, tc := range []struct{ name, in, out, note string }{
		{"addresses", fmt.Sprintf(pool, "") + fmt.Sprintf(l2, ""), "- 192.0.2.0/24", ""},
		{"autoAssign", fmt.Sprintf(pool, ", autoAssign: false") + fmt.Sprintf(l2, ""), "autoAssign: false", ""},
		{"avoidBuggyIPs", fmt.Sprintf(pool, ", avoidBuggyIPs: true") + fmt.Sprintf(l2, ""),
			"avoidBuggyAddresses: true", ""},
		{"serviceAllocation.priority", fmt.Sprintf(pool, ", serviceAllocation: {priority: 5}") + fmt.Sprintf(l2, ""),
			"", "lost IPAddressPool lan: spec.serviceAllocation.priority"},
		{"serviceAllocation.namespaces", fmt.Sprintf(pool, ", serviceAllocation: {namespaces: [a, b]}") +
			fmt.Sprintf(l2, ""), "kubernetes.io/metadata.name", ""},
		{"serviceAllocation.namespaceSelectors",
			fmt.Sprintf(pool, ", serviceAllocation: {namespaceSelectors: [{matchLabels: {team: a}}]}") +
				fmt.Sprintf(l2, ""), "team: a", ""},
		{"namespaces and selectors of one label", fmt.Sprintf(pool, ", serviceAllocation: {namespaces: [a], "+
			"namespaceSelectors: [{matchLabels: {kubernetes.io/metadata.name: c}}]}") + fmt.Sprintf(l2, ""),
			"- a\n      - c", ""},
		{"namespaces and other selectors",
			fmt.Sprintf(pool,
				", serviceAllocation: {namespaces: [a], namespaceSelectors: [{matchLabels: {team: a}}]}") +
				fmt.Sprintf(l2, ""), "- a", "lost IPAddressPool lan: spec.serviceAllocation.namespaceSelectors"},
		{"serviceAllocation.serviceSelectors",
			fmt.Sprintf(pool, ", serviceAllocation: {serviceSelectors: [{matchLabels: {app: web}}]}") +
				fmt.Sprintf(l2, ""), "app: web", ""},
		{"several serviceSelectors", fmt.Sprintf(pool,
			", serviceAllocation: {serviceSelectors: [{matchLabels: {app: web}}, {matchLabels: {tier: x}}]}") +
			fmt.Sprintf(l2, ""), "app: web",
			"lost IPAddressPool lan: spec.serviceAllocation.serviceSelectors: only the first of 2"},
		{"ipAddressPools", fmt.Sprintf(pool, "") + fmt.Sprintf(l2, ", ipAddressPools: [lan]"), "- eth0", ""},
		{"ipAddressPools of none", fmt.Sprintf(pool, "") + fmt.Sprintf(l2, ", ipAddressPools: [wan]"), "enabled: false",
			"L2Advertisement l2: spec.ipAddressPools[0]: there is no IPAddressPool wan"},
		{"ipAddressPoolSelectors", fmt.Sprintf(pool, "") +
			fmt.Sprintf(l2, ", ipAddressPoolSelectors: [{matchLabels: {where: here}}]"), "- eth0", ""},
		{"a bad ipAddressPoolSelector", fmt.Sprintf(pool, "") +
			fmt.Sprintf(l2, ", ipAddressPoolSelectors: [{matchExpressions: [{key: a, operator: Like}]}]"),
			"enabled: false", "lost L2Advertisement l2: spec.ipAddressPoolSelectors[0]"},
		{"nodeSelectors", fmt.Sprintf(pool, "") + fmt.Sprintf(l2, ", nodeSelectors: [{matchLabels: "+
			"{kubernetes.io/hostname: n1}}, {matchLabels: {kubernetes.io/hostname: n2}}]"), "- n1\n        - n2", ""},
		{"nodeSelectors of two labels", fmt.Sprintf(pool, "") +
			fmt.Sprintf(l2, ", nodeSelectors: [{matchLabels: {a: b}}, {matchLabels: {c: d}}]"), "a: b",
			"lost L2Advertisement l2: spec.nodeSelectors: only the first of 2"},
		{"interfaces", fmt.Sprintf(pool, "") + fmt.Sprintf(l2, ""), "- eth0", ""},
		{"no interfaces", fmt.Sprintf(pool, "") +
			"{apiVersion: metallb.io/v1beta1, kind: L2Advertisement, metadata: {name: l2}}", "l2: {}",
			"L2Advertisement l2: spec.interfaces: are empty"},
		{"serviceSelectors", fmt.Sprintf(pool, "") + fmt.Sprintf(l2, ", serviceSelectors: [{matchLabels: {a: b}}]"), "",
			"lost L2Advertisement l2: spec.serviceSelectors"},
		{"preferredNodeSelectors", fmt.Sprintf(pool, "") +
			fmt.Sprintf(l2, ", preferredNodeSelectors: [{weight: 1, preference: {matchLabels: {a: b}}}]"), "",
			"lost L2Advertisement l2: spec.preferredNodeSelectors"},
		{"a field of later", fmt.Sprintf(pool, ", later: 1") + fmt.Sprintf(l2, ""), "",
			"lost IPAddressPool lan: spec.later: is not carried over: unknown"},
		{"a field of later below", fmt.Sprintf(pool, ", serviceAllocation: {later: 1}") + fmt.Sprintf(l2, ""), "",
			"lost IPAddressPool lan: spec.serviceAllocation.later"},
		{"a field of later of L2", fmt.Sprintf(pool, "") + fmt.Sprintf(l2, ", nodeSelectors: [{later: 1}]"), "",
			"lost L2Advertisement l2: spec.nodeSelectors[0].later"},
		{"BFDProfile", other("BFDProfile", "receiveInterval: 100"), "", "lost BFDProfile x: kind"},
		{"a kind of later", other("Later", "a: 1"), "", "lost Later x: kind"},
		{"AddressPool", "{apiVersion: metallb.io/v1beta1, kind: AddressPool, metadata: {name: old}, spec: " +
			"{protocol: layer2, addresses: [192.0.2.0/28], autoAssign: false}}", "name: old",
			"L2Advertisement old: spec.interfaces"},
		{"AddressPool by BGP", "{apiVersion: metallb.io/v1beta1, kind: AddressPool, metadata: {name: old}, spec: " +
			"{protocol: bgp, addresses: [192.0.2.0/28]}}", "enabled: false", "lost AddressPool old: spec.protocol"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, notes, err := MetalLB("x", strings.NewReader(tc.in))
			if err != nil {
				t.Fatal(err)
			}
			want, lost := strings.CutPrefix(tc.note, "lost ")
			if !strings.Contains(string(out), tc.out) || (tc.note == "") != (len(notes) == 0) {
				t.Errorf("became\n%s\n%v", out, notes)
			}
			if len(notes) > 0 && !slices.ContainsFunc(notes, func(n Note) bool {
				return n.Lost == lost &&
					strings.HasPrefix(n.String(), want)
			}) {
				t.Errorf("notes %v, want %s", notes, tc.note)
			}
			if _, problems, err := read(t, string(out)); err != nil || len(problems) > 0 {
				t.Errorf("%v %v\n%s", problems, err, out)
			}
		})
	}
}

// Several L2Advertisements of one pool are joined where one pool can say what they say.
func TestL2AdvertisementsOfOnePoolAreJoined(t *testing.T) {
	const n1, n2, rack = "nodeSelectors: [{matchLabels: {kubernetes.io/hostname: n1}}]",
		"nodeSelectors: [{matchLabels: {kubernetes.io/hostname: n2}}]", "nodeSelectors: [{matchLabels: {rack: a}}]"
	for _, tc := range []struct {
		name string
		advs []string
		want string
		lost bool
	}{
		{"nodes", []string{n1, n2}, "[] n1 n2", false},
		{"nodes of other labels", []string{n1, rack}, "[] n1", true},
		{"nodes and all", []string{n1, rack, ""}, "[] any", true},
		{"all and nodes", []string{"", n1}, "[] any", false},
		{"interfaces", []string{n1 + ", interfaces: [eth1]", n1 + ", interfaces: [eth0]"}, "[eth0 eth1] n1", false},
		{"interfaces of all nodes", []string{"interfaces: [eth1]", "interfaces: [eth0, eth1]"},
			"[eth0 eth1] any", false},
		{"interfaces and all", []string{"interfaces: [eth1]", ""}, "[] any", false},
		{"the same twice", []string{n1 + ", interfaces: [a, b]", n1 + ", interfaces: [b, a]"}, "[a b] n1", false},
		{"both", []string{n1 + ", interfaces: [eth0]", n2 + ", interfaces: [eth1]"}, "[eth0] n1", true},
		{"three", []string{n1 + ", interfaces: [eth0]", n2 + ", interfaces: [eth0]", n1 + ", interfaces: [eth0]"},
			"[eth0] n1 n2", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := "{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: lan}, spec: {addresses: " +
				"[192.0.2.0/24]}}\n"
			for i, a := range tc.advs {
				in += fmt.Sprintf(
					"---\n{apiVersion: metallb.io/v1beta1, kind: L2Advertisement, metadata: {name: l%d}, spec: {%s}}\n",
					i, a)
			}
			out, notes, err := MetalLB("x", strings.NewReader(in))
			if err != nil {
				t.Fatal(err)
			}
			snap, problems, err := read(t, string(out))
			if err != nil || len(problems) > 0 {
				t.Fatal(problems, err)
			}
			p, _ := snap.AddressPool("lan")
			got := fmt.Sprint(p.L2.Interfaces)
			if p.L2.Nodes.Matches(map[string]string{"kubernetes.io/hostname": "other"}) {
				got += " any"
			} else {
				for _, n := range []string{"n1", "n2"} {
					if p.L2.Nodes.Matches(map[string]string{"kubernetes.io/hostname": n}) {
						got += " " + n
					}
				}
			}
			if lost := slices.ContainsFunc(notes, func(n Note) bool { return n.Lost }); got != tc.want ||
				lost != tc.lost {
				t.Errorf("became %s, lost %v, want %s %v\n%v", got, lost, tc.want, tc.lost, notes)
			}
		})
	}
}

// The ConfigMap of MetalLB before 0.13, all of its keys.
func TestTheOldConfigurationOfMetalLB(t *testing.T) {
	const in = `apiVersion: v1
kind: ConfigMap
metadata: {namespace: metallb-system, name: config}
data:
  config: |
    address-pools:
    - {name: lan, protocol: layer2, addresses: [192.0.2.0/28, 192.0.2.40-192.0.2.50], auto-assign: false,
        avoid-buggy-ips: true}
    - {name: wan, protocol: bgp, addresses: [203.0.113.0/24], bgp-advertisements: [{aggregation-length: 32}]}
    peers: [{peer-address: 192.0.2.1}]
    bgp-communities: {a: "1:2"}
    bfd-profiles: [{name: x}]
    later: 1
`
	out, notes, err := MetalLB("x", strings.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	snap, problems, err := read(t, string(out))
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	if lan, _ := snap.AddressPool("lan"); lan == nil || len(lan.Ranges) != 2 || lan.AutoAssign || !lan.AvoidBuggy ||
		!lan.L2.Enabled {
		t.Errorf("lan became %+v", lan)
	}
	if wan, _ := snap.AddressPool("wan"); wan == nil || wan.L2.Enabled {
		t.Errorf("wan became %+v", wan)
	}
	said := fmt.Sprint(notes)
	for _, want := range []string{"data.config.peers", "data.config.bgp-communities", "data.config.bfd-profiles",
		"data.config.later", "data.config.address-pools[1].protocol",
		"data.config.address-pools[1].bgpAdvertisements"} {
		if !strings.Contains(said, want) {
			t.Errorf("notes are %s, want %s", said, want)
		}
	}
}

func FuzzMetalLB(f *testing.F) {
	f.Add(metallbYAML)
	f.Fuzz(func(t *testing.T, in string) {
		out, _, err := MetalLB("x", strings.NewReader(in))
		if err != nil {
			return
		}
		s, err := model.NewStore()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, _ = Read(s, "y", strings.NewReader(string(out))) // any error will do; a panic will not
	})
}
