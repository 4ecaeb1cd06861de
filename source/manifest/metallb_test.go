package manifest

import (
	"strings"
	"testing"

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
  spec: {myASN: 64500}
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
---
apiVersion: metallb.io/v1beta1
kind: Community
metadata: {name: c}
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
		!lan.Namespaces.Matches(map[string]string{"kubernetes.io/metadata.name": "b"}) || lan.Namespaces.Matches(map[string]string{"kubernetes.io/metadata.name": "c"}) ||
		!lan.Services.Matches(map[string]string{"app": "web"}) || lan.Services.Matches(map[string]string{"app": "db"}) {
		t.Errorf("lan became %+v", lan)
	}
	if routed, _ := snap.AddressPool("routed"); routed == nil || routed.L2.Enabled || !routed.AutoAssign || !routed.Services.Matches(nil) {
		t.Errorf("routed became %+v", routed)
	}
	want := []string{
		"BGPPeer tor: kind: is not carried over", "BGPAdvertisement bgp: kind: is not carried over", "Community c: kind: is not carried over",
		"IPAddressPool lan: spec.addresses[0]: 192.0.2.1/24 has host bits set and became 192.0.2.0/24",
		"IPAddressPool lan: spec.serviceAllocation.priority: is not carried over",
		"IPAddressPool lan: spec.serviceAllocation.serviceSelectors: only the first of 2",
		"IPAddressPool routed: spec: no L2Advertisement is for it",
	}
	if len(notes) != len(want) {
		t.Fatalf("notes are\n%s", strings.Join(notes, "\n"))
	}
	for i := range want {
		if !strings.HasPrefix(notes[i], want[i]) {
			t.Errorf("note %q, want %q", notes[i], want[i])
		}
	}
}

func TestWhatIsNotMetalLBs(t *testing.T) {
	for in, want := range map[string]string{
		"apiVersion: v1\nkind: Service\n": `x.yaml: document 1: kind: "Service" of apiVersion "v1" is not MetalLB's`,
		"a: [":                            "x.yaml: document 1: not YAML",
		"apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod}]\n":                             "items[0]: kind",
		"apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: x}\nspec: {addresses: 1}": "cannot unmarshal",
	} {
		if _, _, err := MetalLB("x.yaml", strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
	if out, notes, err := MetalLB("x.yaml", strings.NewReader("# nothing\n")); err != nil || len(out) > 0 || len(notes) != 1 {
		t.Errorf("nothing became %q %v %v", out, notes, err)
	}
	// Bad addresses are named, and the pool is printed as it is: its condition says the same.
	_, notes, err := MetalLB("x", strings.NewReader("apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: x}\nspec: {addresses: [lan]}\n"))
	if err != nil || len(notes) != 2 || !strings.Contains(notes[1], `spec.addresses[0]: "lan" is not an IP address`) {
		t.Errorf("%v %v", notes, err)
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
