package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
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
		w.PutNetworkPolicy(&model.NetworkPolicy{Name: model.Name{Namespace: "shop", Name: "none"}, IsolatesEgress: true})
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
	loop := policyLoop(store, gate, policynft.New(conn, conntrack.NewTracker(ns.FD())))
	loop.Health, loop.Log = reconcile.NewHealth(nil, nil), slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- loop.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if err := gate.Isolate(ctx, []netip.Addr{pod}); err != nil {
		t.Fatal(err)
	}
	gate.DNS([]netip.Addr{netip.MustParseAddr("10.96.0.10")})
	testnet.Eventually(t, 10*time.Second, func() error {
		out, err := ns.Try("nft", "list", "set", "ip", policynft.TableName, "dns")
		if err == nil && !strings.Contains(out, "10.96.0.10") {
			err = errors.New("the address is not in: " + out)
		}
		return err
	})
}
