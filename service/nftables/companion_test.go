package nftables

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// The tables that complement IPVS are taken by this kernel, though it may have no IPVS: what it
// draws is marked and let through, and no slot of it is there.
func TestIPVSCompanion(t *testing.T) {
	ns := testnet.New(t, "node")
	conn, err := nft.NewKernel(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	bypass := model.Name{Namespace: "kube-system", Name: "kube-dns"}
	m := NewIPVSCompanion(conn, &conntrack.Fake{}, func(k model.Name) bool { return k == bypass })
	m.SetNodeFacts(local())
	fe := func(a string, port uint16) service.Frontend {
		return service.Frontend{Addr: netip.MustParseAddr(a), Protocol: model.TCP, Port: port}
	}
	slots := []netip.AddrPort{netip.MustParseAddrPort("10.244.1.5:8080")}
	plan := service.Plan{VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.50")}, Frontends: []service.FrontendPlan{
		{Frontend: fe("0.0.0.0", 30080), Slots: slots, External: true}, {Frontend: fe("10.96.0.50", 80), Slots: slots}}}
	dns := service.Plan{VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Frontends: []service.FrontendPlan{{Frontend: fe("10.96.0.10", 53), Slots: slots}}}
	if err := m.Sync(t.Context(), map[model.Name]service.Plan{{Namespace: "default", Name: "web"}: plan,
		bypass: dns}); err != nil {
		t.Fatal(err)
	}
	out := ""
	for _, set := range []string{setFrontends, setNodePorts, setSlots} {
		out += ns.Run("nft", "list", "map", "ip", CompanionTableName, set)
	}
	for _, want := range []string{"10.96.0.50 . tcp . 80 : goto balanced", "tcp . 30080 : goto balanced-masked",
		"10.96.0.10 . tcp . 53 . 0x00000000 : 10.244.1.5 . 8080"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "10.96.0.50 . tcp . 80 . 0x") {
		t.Errorf("a slot that IPVS has is in\n%s", out)
	}
	ports, err := m.NodePorts(t.Context())
	if err != nil || len(ports) != 1 || ports[0] != fe("0.0.0.0", 30080) {
		t.Errorf("node ports are %v, %v", ports, err)
	}
}

// What operators do first is `nft list ruleset`. Debian 12's nft (1.0.6) ends with an
// assertion where it meets a key of connection tracking whose length it does not know.
func TestTheProgramNftListsTheTables(t *testing.T) {
	ns := testnet.New(t, "node")
	conn, err := nft.NewKernel(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	m := New(conn, &conntrack.Fake{})
	m.SetNodeFacts(local())
	affine := plan(1, 1, 2)
	for i := range affine.Frontends {
		affine.Frontends[i].Affinity = time.Hour
	}
	if err := m.Sync(t.Context(), map[model.Name]service.Plan{name(1): affine, name(2): plan(2, 3)}); err != nil {
		t.Fatal(err)
	}
	out := ns.Run("nft", "list", "ruleset")
	for _, want := range []string{"ct original ip daddr", "ct original ip6 daddr"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}
