package service

import (
	"fmt"
	"net/netip"
	"testing"

	"wayleave.dev/config"
	"wayleave.dev/model"
)

// Node ports are served on the InternalIPs, beside other networks where "primary" says so.
func TestNodePortsOfTheNode(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := store.Write(func(w *model.Writer) {
		w.PutNode(&model.Node{Name: "n1", InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.11"),
			netip.MustParseAddr("2001:db8::11")}})
	}); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"[]": "[192.0.2.11/32 2001:db8::11/128] false", "[primary]": "[192.0.2.11/32 2001:db8::11/128] false",
		"[localhost]":          "[127.0.0.0/8] true",
		"[localhost, primary]": "[127.0.0.0/8 192.0.2.11/32 2001:db8::11/128] true",
		"[198.51.100.0/24]":    "[198.51.100.0/24] false", "[all]": "[0.0.0.0/0 ::/0] true",
	} {
		cfg, err := config.Parse([]byte("service: {nodePortAddresses: " + in + "}"))
		if err != nil {
			t.Fatal(err)
		}
		l, ok, _ := localOf(cfg, store.Snapshot(), "n1")
		if got := fmt.Sprint(l.NodePortNets(), l.Localhost()); !ok || got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
