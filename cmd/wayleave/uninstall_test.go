package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
	"wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	policynft "wayleave.dev/networkpolicy/nftables"
	"wayleave.dev/podnetwork"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
)

// Everything that is put on a node is named by --verify, and gone after uninstall.
func TestUninstallTakesAllAndVerifyProvesIt(t *testing.T) {
	testnet.Need(t, "nft")
	ns := testnet.New(t, "node")
	dir := t.TempDir()
	state, run, conf := filepath.Join(dir, "state"), filepath.Join(dir, "run"), filepath.Join(dir, "net.d")
	for _, d := range []string{state, run, conf} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	open := func() *agent.Host {
		fd, err := os.Open(ns.Path())
		if err != nil {
			t.Fatal(err)
		}
		n, err := agent.NewHost(fd, agent.Dirs{State: state, Run: run, Sysctl: "/proc/sys/net", CNIBin: dir,
			CNIConf: conf})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		return n
	}
	n := open()
	links, err := link.NewKernel(n.FD(), filepath.Join(state, "dns-addresses"))
	if err != nil {
		t.Fatal(err)
	}
	fill := func() error {
		ctx := t.Context()
		mode := nftables.New(n.NFT, nil)
		if err := mode.Sync(ctx, map[model.Name]service.Plan{}); err != nil {
			return err
		}
		pod := networkpolicy.Key{Kind: networkpolicy.PodEntry, Addr: netip.MustParseAddr("10.244.1.5")}
		six := networkpolicy.Key{Kind: networkpolicy.PodEntry, Addr: netip.MustParseAddr("fd00:244::5")}
		if err := policynft.New(n.NFT, conntrack.NewTracker(n.FD())).Sync(ctx,
			map[networkpolicy.Key]networkpolicy.Entry{pod: {Profile: "0123456789abcdef"},
				six: {Profile: "0123456789abcdef"}}); err != nil {
			return err
		}
		p := &dns.Placement{Net: links, Bypass: dns.NFTables{Conn: n.NFT}, Feed: &dns.Feed{},
			Forwarding: func([]netip.Addr) schema.Forwarding {
				return schema.Forwarding{}
			}}
		place := dns.Place{VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}}
		if err := p.Sync(ctx, map[model.Name]dns.Place{{}: place}); err != nil {
			return err
		}
		if err := links.SetRoute(ctx, link.Route{Dst: netip.MustParsePrefix("10.244.7.0/24")}); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(conf, podnetwork.ConfName), nil, 0o644)
	}
	ns.Must(fill)
	ns.Must(func() error {
		err := n.Verify(t.Context(), features.All())
		for _, want := range []string{"table ip " + nftables.TableName, "table ip6 " + nftables.TableName, "table ip " +
			dns.TableName, "table ip " + policynft.TableName, "table ip6 " + policynft.TableName,
			"address 10.96.0.10 on lo",
			"route to 10.244.7.0/24", podnetwork.ConfName, "folder " + state, "folder " + run} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s is not named by: %v", want, err)
			}
		}
		return nil
	})
	ns.Must(func() error { return open().Uninstall(t.Context(), features.All()) })
	ns.Must(func() error { return open().Verify(t.Context(), features.All()) })
	if out := ns.Run("sh", "-c",
		"nft list ruleset; ip route show table all proto 87; ip -o addr show dev lo | grep 10.96 || true"); out != "" {
		t.Errorf("left: %s", out)
	}
	ns.Must(func() error { return open().Uninstall(t.Context(), features.All()) }) // twice is no error
}
