package source

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"wayleave.dev/api"
	"wayleave.dev/model"
)

func seconds(n float64) *metav1.Duration {
	return &metav1.Duration{Duration: time.Duration(n * float64(time.Second))}
}

func ref[T any](v T) *T { return &v }

var badSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
	{Key: "a", Operator: "Like"}}}

// wantProblem checks that the first problem names the field and says what is wrong.
func wantProblem(t *testing.T, problems []model.Problem, invalid, field, text string) {
	t.Helper()
	if len(problems) == 0 || !slices.ContainsFunc(problems, func(p model.Problem) bool {
		return p.Field == field && strings.Contains(p.Reason, text)
	}) {
		t.Errorf("problems are %v, want %s: …%s…", problems, field, text)
	}
	if invalid == "" {
		t.Error("the object does not count as invalid")
	}
}

func TestEachBadFieldOfABGPPeerIsNamed(t *testing.T) {
	for _, c := range []struct {
		field, text string
		change      func(*api.BGPPeerSpec)
	}{
		{"spec.address", "0 of address, interface and addressRange", func(s *api.BGPPeerSpec) { s.Address = "" }},
		{"spec.address", "2 of address", func(s *api.BGPPeerSpec) { s.Interface = "eth0" }},
		{"spec.address", "router", func(s *api.BGPPeerSpec) { s.Address = "tor1" }},
		{"spec.address", "not the address of a router", func(s *api.BGPPeerSpec) { s.Address = "0.0.0.0" }},
		{"spec.address", "not the address of a router", func(s *api.BGPPeerSpec) { s.Address = "ff02::1" }},
		{"spec.address", "not the address of a router", func(s *api.BGPPeerSpec) { s.Address = "255.255.255.255" }},
		{"spec.address", "link-local", func(s *api.BGPPeerSpec) { s.Address = "fe80::1" }},
		{"spec.interface", "not the name", func(s *api.BGPPeerSpec) { s.Address, s.Interface = "", "../eth0" }},
		{"spec.interface", "not the name",
			func(s *api.BGPPeerSpec) { s.Address, s.Interface = "", "sixteen-letters-x" }},
		{"spec.addressRange", "host bits", func(s *api.BGPPeerSpec) { s.Address, s.AddressRange = "", "192.0.2.1/24" }},
		{"spec.addressRange", "more than 256 addresses", func(s *api.BGPPeerSpec) {
			s.Address, s.AddressRange = "",
				"0.0.0.0/0"
		}},
		{"spec.port", "no meaning",
			func(s *api.BGPPeerSpec) { s.Address, s.AddressRange, s.Port = "", "192.0.2.0/24", 179 }},
		{"spec.sourceAddress", "no meaning",
			func(s *api.BGPPeerSpec) { s.Address, s.AddressRange, s.SourceAddress = "", "192.0.2.0/24", "192.0.2.9" }},
		{"spec.asn", "is missing", func(s *api.BGPPeerSpec) { s.ASN = 0 }},
		{"spec.asn", "not an ASN", func(s *api.BGPPeerSpec) { s.ASN = 1 << 32 }},
		{"spec.asn", "not an ASN", func(s *api.BGPPeerSpec) { s.ASN = -1 }},
		{"spec.asn", "reserved", func(s *api.BGPPeerSpec) { s.ASN = 23456 }},
		{"spec.asnType", "excludes", func(s *api.BGPPeerSpec) { s.ASNType = "External" }},
		{"spec.asnType", "Internal and External", func(s *api.BGPPeerSpec) { s.ASN, s.ASNType = 0, "auto" }},
		{"spec.localASN", "reserved", func(s *api.BGPPeerSpec) { s.LocalASN = 65535 }},
		{"spec.port", "70000", func(s *api.BGPPeerSpec) { s.Port = 70000 }},
		{"spec.sourceAddress", "family", func(s *api.BGPPeerSpec) { s.SourceAddress = "2001:db8::1" }},
		{"spec.passwordSecret.name", "empty", func(s *api.BGPPeerSpec) { s.PasswordSecret = &api.SecretKey{} }},
		{"spec.ttlSecurity", "255", func(s *api.BGPPeerSpec) { s.TTLSecurity = 255 }},
		{"spec.ebgpMultiHop", "256", func(s *api.BGPPeerSpec) { s.EBGPMultiHop = 256 }},
		{"spec.ebgpMultiHop", "excludes", func(s *api.BGPPeerSpec) { s.EBGPMultiHop, s.TTLSecurity = 2, 2 }},
		{"spec.holdTime", "3s to", func(s *api.BGPPeerSpec) { s.HoldTime = seconds(2) }},
		{"spec.holdTime", "whole seconds", func(s *api.BGPPeerSpec) { s.HoldTime = seconds(3.5) }},
		{"spec.holdTime", "0s", func(s *api.BGPPeerSpec) { s.HoldTime = seconds(0) }},
		{"spec.addressRange", "more than 256",
			func(s *api.BGPPeerSpec) { s.Address, s.AddressRange = "", "2001:db8::/119" }},
		{"spec.holdTime", "-1s", func(s *api.BGPPeerSpec) { s.HoldTime = seconds(-1) }},
		{"spec.keepaliveTime", "a third", func(s *api.BGPPeerSpec) {
			s.HoldTime, s.KeepaliveTime = seconds(9),
				seconds(4)
		}},
		{"spec.connectTime", "1s", func(s *api.BGPPeerSpec) { s.ConnectTime = seconds(0.5) }},
		{"spec.gracefulRestart.restartTime", "1h8m15s",
			func(s *api.BGPPeerSpec) { s.GracefulRestart = &api.GracefulRestart{RestartTime: seconds(4096)} }},
		{"spec.gracefulRestart.longLivedTime", "4660h",
			func(s *api.BGPPeerSpec) { s.GracefulRestart = &api.GracefulRestart{LongLivedTime: seconds(1e8)} }},
		{"spec.families[0]", "IPv4 and IPv6", func(s *api.BGPPeerSpec) { s.Families = []string{"ipv4"} }},
		{"spec.import.networks[0]", "host bits",
			func(s *api.BGPPeerSpec) { s.Import.Networks = []string{"10.0.0.1/8"} }},
		{"spec.import.maxPrefixes", "-1", func(s *api.BGPPeerSpec) { s.Import.MaxPrefixes = -1 }},
		{"spec.nodeSelector.matchExpressions[0].operator", "Like",
			func(s *api.BGPPeerSpec) { s.NodeSelector = badSelector }},
	} {
		in := &api.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "tor"},
			Spec: api.BGPPeerSpec{Address: "192.0.2.1", ASN: 64512}}
		if out, problems := BGPPeer(in); len(problems) > 0 || out.Invalid != "" {
			t.Fatal(problems)
		}
		c.change(&in.Spec)
		text := c.text
		if text == "router" {
			text = "tor1"
		}
		out, problems := BGPPeer(in)
		wantProblem(t, problems, out.Invalid, c.field, text)
	}
}

// A range of peers is passive and has no port; what is not set is that of the configuration.
func TestABGPPeersDefaults(t *testing.T) {
	out, problems := BGPPeer(&api.BGPPeer{Spec: api.BGPPeerSpec{AddressRange: "192.0.2.0/24", ASNType: "External"}})
	if len(problems) > 0 || !out.Passive || out.Port != 0 || out.Type != model.ExternalASN || !out.IPv4 || !out.IPv6 ||
		out.Restart != nil || out.Import.MaxPrefixes != model.BGPDefaultPrefixes {
		t.Errorf("%+v, %v", out, problems)
	}
	d := model.DefaultBGP()
	if got := d.TimersOf(out); got != d.Timers || !d.RestartOf(out).Enabled {
		t.Errorf("timers are %v", got)
	}
	out, _ = BGPPeer(&api.BGPPeer{Spec: api.BGPPeerSpec{Interface: "eth0", ASN: 4200000000,
		BGPTimers: api.BGPTimers{HoldTime: seconds(9)}, PasswordSecret: &api.SecretKey{Name: "s"}}})
	if got := d.TimersOf(out); got.Hold != 9*time.Second || got.Keepalive != 3*time.Second ||
		out.Password.Key != "password" {
		t.Errorf("timers are %v, the password %v", got, out.Password)
	}
}

func TestEachBadFieldOfABGPConfigurationIsNamed(t *testing.T) {
	for _, c := range []struct {
		field, text string
		change      func(*api.BGPConfiguration)
	}{
		{"metadata.name", `"default" is the only name`, func(o *api.BGPConfiguration) { o.Name = "other" }},
		{"spec.asn", "reserved", func(o *api.BGPConfiguration) { o.Spec.ASN = 65535 }},
		{"spec.nodeASNs[0].asn", "is missing", func(o *api.BGPConfiguration) { o.Spec.NodeASNs = []api.NodeASN{{}} }},
		{"spec.nodeASNs[0].nodeSelector.matchExpressions[0].operator", "Like", func(o *api.BGPConfiguration) {
			o.Spec.NodeASNs = []api.NodeASN{{ASN: 1, NodeSelector: badSelector}}
		}},
		{"spec.listenPort", "-1", func(o *api.BGPConfiguration) { o.Spec.ListenPort = -1 }},
		{"spec.mesh.clusterID", "IPv4", func(o *api.BGPConfiguration) { o.Spec.Mesh.ClusterID = "2001:db8::1" }},
		{"spec.mesh.passwordSecret.name", "empty",
			func(o *api.BGPConfiguration) { o.Spec.Mesh.PasswordSecret = &api.SecretKey{} }},
		{"spec.mesh.routeReflectorSelector.matchExpressions[0].operator", "Like",
			func(o *api.BGPConfiguration) { o.Spec.Mesh.RouteReflectorSelector = badSelector }},
		{"spec.holdTime", "1s", func(o *api.BGPConfiguration) { o.Spec.HoldTime = seconds(1) }},
	} {
		in := &api.BGPConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
		c.change(in)
		out, problems := BGPConfiguration(in)
		wantProblem(t, problems, out.Invalid, c.field, c.text)
	}
	out, problems := BGPConfiguration(&api.BGPConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	if len(problems) > 0 || !out.Equal(model.DefaultBGP()) {
		t.Errorf("an empty one is %+v, %v", out, problems)
	}
}

// The first match counts; a selector that cannot be read selects nothing, and an invalid ASN gives its nodes none.
func TestANodesASN(t *testing.T) {
	rack := func(name string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"rack": name}}
	}
	out, _ := BGPConfiguration(&api.BGPConfiguration{Spec: api.BGPConfigurationSpec{ASN: 64600, NodeASNs: []api.NodeASN{
		{ASN: 1, NodeSelector: badSelector}, {ASN: 65001, NodeSelector: rack("a")},
		{ASN: 65535, NodeSelector: rack("b")},
		{ASN: 65002, NodeSelector: rack("a")}}}})
	node := func(rack, annotation string) *model.Node {
		in := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"rack": rack}}}
		if annotation != "" {
			in.Annotations = map[string]string{api.ASNAnnotation: annotation}
		}
		n, _ := Node(in)
		return n
	}
	for _, c := range []struct {
		rack, annotation string
		want             uint32
	}{{"a", "", 65001}, {"b", "", 0}, {"c", "", 64600}, {"a", "4200000001", 4200000001}, {"c", "many", 64600}} {
		if got := out.ASNOf(node(c.rack, c.annotation)); got != c.want {
			t.Errorf("rack %s, annotation %q: ASN %d, want %d", c.rack, c.annotation, got, c.want)
		}
	}
	_, problems := Node(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
		api.ASNAnnotation: "many", api.RouterIDAnnotation: "2001:db8::1"}}})
	if text := fmt.Sprint(problems); len(problems) != 2 || !strings.Contains(text, api.ASNAnnotation) ||
		!strings.Contains(text, api.RouterIDAnnotation) {
		t.Errorf("problems are %v", problems)
	}
}

func TestEachBadFieldOfABGPAdvertisementIsNamed(t *testing.T) {
	for _, c := range []struct {
		field, text string
		change      func(*api.BGPAdvertisementSpec)
	}{
		{"spec.addresses[0]", "ClusterIP", func(s *api.BGPAdvertisementSpec) { s.Addresses = []string{"All"} }},
		{"spec.aggregationLength", "33", func(s *api.BGPAdvertisementSpec) { s.AggregationLength = ref(int32(33)) }},
		{"spec.aggregationLength", "default route",
			func(s *api.BGPAdvertisementSpec) { s.AggregationLength = ref(int32(0)) }},
		{"spec.aggregationLengthV6", "129",
			func(s *api.BGPAdvertisementSpec) { s.AggregationLengthV6 = ref(int32(129)) }},
		{"spec.communities[1]", "not a community",
			func(s *api.BGPAdvertisementSpec) { s.Communities = []string{"no-export", "65536:1"} }},
		{"spec.communities[0]", "not a community",
			func(s *api.BGPAdvertisementSpec) { s.Communities = []string{"1:2:3"} }},
		{"spec.largeCommunities[0]", "not a large community",
			func(s *api.BGPAdvertisementSpec) { s.LargeCommunities = []string{"1:2"} }},
		{"spec.localPreference", "-1", func(s *api.BGPAdvertisementSpec) { s.LocalPreference = ref(int64(-1)) }},
		{"spec.localPreference", "0 is not supported",
			func(s *api.BGPAdvertisementSpec) { s.LocalPreference = ref(int64(0)) }},
		{"spec.med", "4294967296", func(s *api.BGPAdvertisementSpec) { s.MED = ref(int64(1 << 32)) }},
		{"spec.peerSelector.matchExpressions[0].operator", "Like",
			func(s *api.BGPAdvertisementSpec) { s.PeerSelector = badSelector }},
		{"spec.communities", "64 entries",
			func(s *api.BGPAdvertisementSpec) { s.Communities = slices.Repeat([]string{"1:1"}, 64) }},
	} {
		in := &api.BGPAdvertisement{}
		c.change(&in.Spec)
		out, problems := BGPAdvertisement(in)
		wantProblem(t, problems, out.Invalid, c.field, c.text)
	}
	out, problems := BGPAdvertisement(&api.BGPAdvertisement{Spec: api.BGPAdvertisementSpec{
		Communities: []string{"no-export", "64512:100", "7"}, LargeCommunities: []string{"4200000000:1:2"}}})
	if len(problems) > 0 || out.Addresses != model.AnnounceLoadBalancerIPs || out.Length4 != 32 || out.Length6 != 128 ||
		!slices.Equal(out.Communities, []uint32{0xffffff01, 64512<<16 | 100, 7}) ||
		!slices.Equal(out.Large, []model.LargeCommunity{{4200000000, 1, 2}}) {
		t.Errorf("%+v, %v", out, problems)
	}
}

// Whatever the fields are: an object is invalid exactly if it has a problem, and each problem names a field.
func TestBGPObjectsAreInvalidIfTheyHaveAProblem(t *testing.T) {
	rnd := rand.New(rand.NewPCG(18, 1))
	text := func() string {
		all := []string{"", "", "192.0.2.1", "2001:db8::1", "fe80::1", "192.0.2.0/24", "10.0.0.1/8", "::/0",
			"eth0", "a/b",
			"IPv4", "Internal", "External", "1:2", "1:2:3", "99999:1", "no-export", "PodCIDR", "\x00", "%", "-", "1:"}
		return all[rnd.IntN(len(all))]
	}
	list := func() (out []string) {
		for range rnd.IntN(3) {
			out = append(out, text())
		}
		return out
	}
	number := func() int64 {
		all := []int64{0, 0, 1, 2, 255, 256, 23456, 65535, 65536, 1<<32 - 1, 1 << 32, -1, -1 << 63, 1<<63 - 1}
		return all[rnd.IntN(len(all))]
	}
	duration := func() *metav1.Duration {
		if rnd.IntN(2) == 0 {
			return nil
		}
		return &metav1.Duration{Duration: time.Duration(number()) * []time.Duration{1, time.Second}[rnd.IntN(2)]}
	}
	check := func(o any, invalid string, problems []model.Problem) {
		t.Helper()
		if (invalid != "") != (len(problems) > 0) {
			t.Fatalf("%+v: invalid %q, problems %v", o, invalid, problems)
		}
		for _, p := range problems {
			if p.Field == "" || p.Reason == "" || p.Kind == "" {
				t.Fatalf("%+v: a problem says %+v", o, p)
			}
		}
	}
	for range 20000 {
		timers := api.BGPTimers{HoldTime: duration(), KeepaliveTime: duration(), ConnectTime: duration()}
		p := &api.BGPPeer{Spec: api.BGPPeerSpec{Address: text(), Interface: text(), AddressRange: text(), ASN: number(),
			ASNType: text(), LocalASN: number(), Port: int32(number()), SourceAddress: text(),
			TTLSecurity: int32(number()), EBGPMultiHop: int32(number()), BGPTimers: timers, Families: list(),
			Import: api.BGPImport{Networks: list(), MaxPrefixes: int32(number())}}}
		peer, problems := BGPPeer(p)
		check(p.Spec, peer.Invalid, problems)
		if peer.Invalid == "" && peer.ASN == 0 && peer.Type == model.ExactASN {
			t.Fatalf("%+v: no ASN", p.Spec)
		}
		c := &api.BGPConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: api.BGPConfigurationSpec{
			ASN: number(), ListenPort: int32(number()), BGPTimers: timers, Mesh: api.BGPMesh{ClusterID: text()},
			NodeASNs: []api.NodeASN{{ASN: number()}}}}
		conf, problems := BGPConfiguration(c)
		check(c.Spec, conf.Invalid, problems)
		length := int32(number())
		a := &api.BGPAdvertisement{Spec: api.BGPAdvertisementSpec{Addresses: list(), AggregationLength: &length,
			AggregationLengthV6: &length, Communities: list(), LargeCommunities: list(), MED: ref(number())}}
		adv, problems := BGPAdvertisement(a)
		check(a.Spec, adv.Invalid, problems)
	}
}

// Passwords that the kernel cannot take are left out, and nothing prints one.
func TestPeerSecretsAreKept(t *testing.T) {
	out, _ := PeerSecret(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "wayleave-peers", Name: "s"},
		Data: map[string][]byte{"password": []byte("hunter2"), "long": make([]byte, 81), "none": nil}})
	if len(out.Values) != 1 || out.Values["password"] != "hunter2" {
		t.Errorf("%v", out.Values)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", out, *out, *out, out); strings.Contains(text, "hunter2") {
		t.Error(text)
	}
}
