package agent

import (
	"fmt"
	"net/netip"
	"testing"

	"wayleave.dev/config"
	"wayleave.dev/model"
)

// An address that kubelets give to pods on each node, as a NodeLocal DNSCache has it, is never asked of the API server
// as a ClusterIP.
func TestTheAddressOfANodeLocalDNSCache(t *testing.T) {
	all := []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("10.96.0.10"),
		netip.MustParseAddr("fd00:96::a"), netip.MustParseAddr("fe80::a")}
	service, node := SplitDNS(all)
	if got := fmt.Sprint(service, node); got != "[10.96.0.10 fd00:96::a fe80::a] [169.254.20.10]" {
		t.Errorf("it is split into %s", got)
	}
}

// A hostPort at the port of BGP would take the sessions of the node.
func TestTheBGPPortIsReserved(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	var cfg config.Config
	reserved := func(p model.Protocol, port uint16) bool {
		return ReservedPorts(cfg).Port(store.Snapshot(), p, port) != ""
	}
	if reserved(model.TCP, 179) {
		t.Error("reserved without BGP")
	}
	cfg.BGP.Enabled = true
	if !reserved(model.TCP, 179) || reserved(model.UDP, 179) || reserved(model.TCP, 1179) {
		t.Error("not only TCP port 179 is reserved")
	}
	if err := store.Write(func(w *model.Writer) {
		w.PutBGPConfiguration(&model.BGPConfiguration{Name: model.BGPDefault, Port: 1179})
	}); err != nil {
		t.Fatal(err)
	}
	if reserved(model.TCP, 179) || !reserved(model.TCP, 1179) {
		t.Error("the port of the BGPConfiguration is not reserved")
	}
}
