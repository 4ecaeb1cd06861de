package networkpolicy

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	policynft "wayleave.dev/networkpolicy/nftables"
	"wayleave.dev/reconcile"
)

// The address of kube-dns becomes known when policies are in the kernel already, none of
// which lets anybody ask it: it gets there all the same, or queries would be undecided.
// So do addresses that it has later, and those of before go.
func TestALateDNSAddressReachesTheKernel(t *testing.T) {
	ns := testnet.New(t, "node1")
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	pod := netip.MustParseAddr("10.244.1.5")
	if err := store.Write(func(w *model.Writer) {
		w.PutNamespace(&model.Namespace{Name: "shop"})
		w.PutPod(&model.Pod{Name: model.Name{Namespace: "shop", Name: "web"}, Node: "node1", IPs: []netip.Addr{pod}})
		w.PutNetworkPolicy(&model.NetworkPolicy{Name: model.Name{Namespace: "shop", Name: "none"},
			IsolatesEgress: true})
	}); err != nil {
		t.Fatal(err)
	}
	store.MarkSynced(networkpolicy.PlannerKinds)
	conn, err := nft.NewKernel(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	gate := networkpolicy.NewGate("node1")
	gate.Leases(map[netip.Addr]model.Name{pod: {Namespace: "shop", Name: "web"}})
	keep := loop(store, gate, policynft.New(conn, conntrack.NewTracker(ns.FD())))
	keep.Health, keep.Log = reconcile.NewHealth(nil, nil), slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- keep.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if err := gate.Isolate(ctx, []netip.Addr{pod}); err != nil {
		t.Fatal(err)
	}
	for _, addrs := range [][]string{{"10.96.0.10"}, {"10.96.0.11"}, {"10.96.0.11", "fd00:96::a"},
		{"10.96.0.10"}, nil} {
		var now []netip.Addr
		for _, a := range addrs {
			now = append(now, netip.MustParseAddr(a))
		}
		gate.DNS(now)
		testnet.Eventually(t, 10*time.Second, func() error {
			got := ""
			for _, family := range []string{"ip", "ip6"} {
				out, err := ns.Try("nft", "list", "set", family, policynft.TableName, "dns")
				if err != nil {
					return err
				}
				got += out
			}
			for _, a := range []string{"10.96.0.10", "10.96.0.11", "fd00:96::a"} {
				if strings.Contains(got, a) != slices.Contains(addrs, a) {
					return fmt.Errorf("kube-dns has %v, and there is: %s", addrs, got)
				}
			}
			return nil
		})
	}
}
