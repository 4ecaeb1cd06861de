package link

import (
	"fmt"
	"net/netip"
	"testing"

	"wayleave.dev/internal/testnet"
)

// What leads to pods is told from what leads to strangers, by links as CNI plugins and others make them.
func TestPodNetworks(t *testing.T) {
	t.Parallel()
	node := testnet.New(t, "node")
	for _, cmd := range [][]string{
		// The uplink with the node's address, and pods of a cloud's plugin in its network.
		{"ip", "link", "add", "eth0", "type", "vxlan", "id", "1", "dstport", "91", "dev", "lo"},
		{"ip", "link", "set", "eth0", "up"},
		{"ip", "addr", "add", "192.0.2.11/24", "dev", "eth0"}, {"ip", "route", "add", "default", "via", "192.0.2.1"},
		{"ip", "link", "add", "eni1", "type", "veth", "peer", "name", "eni1p"}, {"ip", "link", "set", "eni1", "up"},
		{"ip", "route", "add", "192.0.2.77/32", "dev", "eni1"},
		// Calico's routes, of both families.
		{"ip", "link", "add", "cali1", "type", "veth", "peer", "name", "cali1p"}, {"ip", "link", "set", "cali1", "up"},
		{"ip", "route", "add", "10.244.180.7/32", "dev", "cali1"}, {"ip", "-6", "route", "add", "fd00:180::7/128",
			"dev", "cali1"},
		// A bridge of pods, and Docker's.
		{"ip", "link", "add", "cni0", "type", "bridge"}, {"ip", "link", "set", "cni0", "up"},
		{"ip", "addr", "add", "10.88.0.1/24", "dev", "cni0"},
		{"ip", "link", "add", "v1", "type", "veth", "peer", "name", "v1p"},
		{"ip", "link", "set", "v1", "master", "cni0"},
		{"ip", "link", "add", "docker0", "type", "bridge"}, {"ip", "link", "set", "docker0", "up"},
		{"ip", "addr", "add", "172.17.0.1/16", "dev", "docker0"},
		{"ip", "link", "add", "v2", "type", "veth", "peer", "name", "v2p"},
		{"ip", "link", "set", "v2", "master", "docker0"},
		// A bridge to the LAN, which has pods and strangers.
		{"ip", "link", "add", "br1", "type", "bridge"}, {"ip", "link", "set", "br1", "up"},
		{"ip", "addr", "add", "198.51.100.1/24", "dev", "br1"},
		{"ip", "link", "add", "eth1", "type", "vxlan", "id", "2", "dstport", "92", "dev", "lo"},
		{"ip", "link", "set", "eth1", "master", "br1"},
		{"ip", "link", "add", "v3", "type", "veth", "peer", "name", "v3p"},
		{"ip", "link", "set", "v3", "master", "br1"},
		// Cilium's, and a second card and a VPN with addresses that a pod could have.
		{"ip", "link", "add", "cilium_host", "type", "veth", "peer", "name", "cilium_net"},
		{"ip", "link", "set", "cilium_host", "up"},
		{"ip", "addr", "add", "10.0.1.1/32", "dev", "cilium_host"}, {"ip", "route", "add", "10.0.1.0/24", "dev",
			"cilium_host"},
		{"ip", "route", "add", "10.0.0.0/8", "dev", "cilium_host", "metric", "9"},
		{"ip", "link", "add", "eth2", "type", "vxlan", "id", "3", "dstport", "93", "dev", "lo"},
		{"ip", "link", "set", "eth2", "up"}, {"ip", "addr", "add", "203.0.113.1/24", "dev", "eth2"},
		{"ip", "link", "add", "wg0", "type", "vxlan", "id", "4", "dstport", "94", "dev", "lo"},
		{"ip", "link", "set", "wg0", "up"}, {"ip", "route", "add", "100.64.0.9/32", "dev", "wg0"},
	} {
		node.Run(cmd[0], cmd[1:]...)
	}
	k, err := NewKernel(node.FD(), "")
	if err != nil {
		t.Fatal(err)
	}
	addrs := func(list ...string) (out []netip.Addr) {
		for _, a := range list {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	nodes := addrs("192.0.2.11")
	for _, c := range []struct {
		pods []netip.Addr
		want string
	}{
		{nil, "[10.244.180.7/32 192.0.2.77/32 fd00:180::7/128]"},
		{addrs("10.88.0.5", "198.51.100.7", "10.0.1.9", "203.0.113.7", "100.64.0.9", "192.0.2.78"),
			"[10.0.1.0/24 10.88.0.0/24 10.244.180.7/32 192.0.2.77/32 fd00:180::7/128]"},
	} {
		got, err := k.PodNetworks(t.Context(), c.pods, nodes)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("with %v: %v, want %s", c.pods, got, c.want)
		}
	}
	bridges, err := k.PodBridges(t.Context(), addrs("10.88.0.5", "198.51.100.7", "10.0.1.9"), nodes)
	if err != nil || fmt.Sprint(bridges) != "[cni0]" {
		t.Errorf("bridges of pods are %v, %v", bridges, err)
	}
	changed, err := k.WatchRoutes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	node.Run("ip", "route", "add", "10.244.180.8/32", "dev", "cali1")
	<-changed
}
