package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"wayleave.dev/lab/place"
)

func TestSettingsNameTheWrongFlag(t *testing.T) {
	good := Settings{Nodes: 3, Network: None, ProxyMode: "nftables"}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Settings){
		"--nodes 0":                        func(s *Settings) { s.Nodes = 0 },
		"--nodes 999":                      func(s *Settings) { s.Nodes = 999 },
		`--network "calico"`:               func(s *Settings) { s.Network = "calico" },
		`--proxy-mode "ipvs"`:              func(s *Settings) { s.ProxyMode = "ipvs" },
		"wayleave, none, upstream":         func(s *Settings) { s.Network = "" },
		"--settings: found --network none": func(s *Settings) { s.File = "x.yaml" },
		"--bare: found --network upstream": func(s *Settings) { s.Bare, s.Network = true, Upstream },
	} {
		s := good
		change(&s)
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %s", err, want)
		}
	}
}

func TestLockIsHeldByOne(t *testing.T) {
	name := fmt.Sprintf("@wayleave-lab-test-%d", os.Getpid())
	unlock, err := lock(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(name); err == nil || !strings.Contains(err.Error(), "another") {
		t.Errorf("a second one: %v", err)
	}
	unlock()
	again, err := lock(name)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestNothingUp(t *testing.T) {
	root := t.TempDir()
	lab := &Lab{Dirs: place.Dirs{Cache: root + "/c", State: root + "/s", Data: root + "/d"}, Out: &bytes.Buffer{}}
	_, err := lab.Kubeconfig()
	for name, err := range map[string]error{
		"status": lab.Status(t.Context()), "kubeconfig": err,
		"exec": lab.Exec(t.Context(), "node1", nil), "load": lab.Load(t.Context(), "x.tar"),
		"e2e": lab.Test(t.Context(), Tests{Filter: "x", Procs: 1}),
	} {
		if !errors.Is(err, ErrDown) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for want, tests := range map[string]Tests{"FILTER": {Filter: "(", Procs: 1}, "--skip": {Skip: "[", Procs: 1},
		"--procs 0": {}} {
		if err := lab.Test(t.Context(), tests); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("e2e: got %v, want an error naming %s", err, want)
		}
	}
}

func TestUnknownMachineIsNamed(t *testing.T) {
	lab := &Lab{Dirs: place.Dirs{State: t.TempDir()}}
	_, err := lab.in(context.Background(), state{Settings: Settings{Nodes: 2}, Kubectl: "/x/kubectl", Ctr: "/x/ctr"},
		"node3", []string{"ls"})
	if err == nil || !strings.Contains(err.Error(), `"node3"`) || !strings.Contains(err.Error(), "node1, node2") {
		t.Errorf("got %v", err)
	}
}

func TestStateIsReadAsWritten(t *testing.T) {
	dirs := place.Dirs{State: t.TempDir()}
	want := state{Settings: Settings{Nodes: 2, DualStack: true, Network: None, ProxyMode: "nftables"}, Kubernetes: "v1",
		Port: 5, Kubectl: "k", Ctr: "c"}
	if err := want.save(dirs); err != nil {
		t.Fatal(err)
	}
	if got, err := load(dirs); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
}

var pods = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}

func TestBridgeConfig(t *testing.T) {
	data, err := bridgeConfig(pods)
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Plugins []struct {
			Type   string
			IPMasq bool
			IPAM   struct {
				Ranges [][]struct{ Subnet string }
				Routes []struct{ Dst string }
			}
		}
	}
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	bridge := list.Plugins[0]
	if bridge.Type != "bridge" || bridge.IPMasq || len(bridge.IPAM.Ranges) != 2 ||
		bridge.IPAM.Ranges[1][0].Subnet != "fd00:10:244::/56" ||
		bridge.IPAM.Routes[1].Dst != "::/0" || list.Plugins[1].Type != "portmap" {
		t.Errorf("got %s", data)
	}
}

func TestMasqueradeSparesWhatStaysAmongPods(t *testing.T) {
	got := masqueradeRules(pods)
	for _, want := range []string{"ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade",
		"ip6 saddr fd00:10:244::/56 ip6 daddr != fd00:10:244::/56 masquerade"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestUpstreamConfigs(t *testing.T) {
	got := proxyConfig("iptables", "node2", pods)
	for _, want := range []string{"mode: iptables\n", "hostnameOverride: node2\n",
		`clusterCIDR: "10.244.0.0/16,fd00:10:244::/56"`, "maxPerCore: 0"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	manifest := coreDNSManifest()
	if strings.Contains(manifest, "$") || !strings.Contains(manifest, "clusterIP: 10.96.0.10\n") {
		t.Errorf("got\n%s", manifest)
	}
}
