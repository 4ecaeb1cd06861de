package config

import (
	"strings"
	"testing"
	"time"
)

func TestDefaults(t *testing.T) {
	c := Default()
	if c.Mode != "auto" || !c.Service.Enabled || !c.DNS.Enabled || !c.PodNetwork.Enabled || c.PodNetwork.CoolDown != time.Minute {
		t.Errorf("defaults are %+v", c)
	}
}

func TestTheCommentedFileIsTheDefaults(t *testing.T) {
	c, err := Parse([]byte(Commented()))
	if err != nil {
		t.Fatal(err)
	}
	if want := Default(); c.Mode != want.Mode || c.PodNetwork != want.PodNetwork || c.LogLevel != want.LogLevel {
		t.Errorf("read %+v, want %+v", c, want)
	}
}

func TestGoodSettings(t *testing.T) {
	c, err := Parse([]byte("mode: nftables\ndns:\n  upstreams: [\"9.9.9.9\", \"[2620:fe::fe]:5353\"]\nservice: {enabled: false}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.DNS.Upstreams[0].String() + " " + c.DNS.Upstreams[1].String(); got != "9.9.9.9:53 [2620:fe::fe]:5353" {
		t.Errorf("upstreams %s", got)
	}
	if c.Service.Enabled {
		t.Error("service is still on")
	}
}

// Every wrong setting names its key, what was found and what is allowed.
func TestBadSettings(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"mode: iptable", `mode: found "iptable"; allowed: auto, nftables, iptables, ipvs`},
		{"mode: ebpf", `mode: found "ebpf"; that is not built yet; allowed: auto, nftables, iptables, ipvs`},
		{"mode: ipvs\nipvs: {scheduler: wrong}", `ipvs.scheduler: found "wrong"; allowed: rr, lc, dh, sh, wrr, wlc, sed, nq, mh`},
		{"ipvs: {drain: 2d}", `ipvs.drain: found "2d"; a duration from 0s to 24h0m0s is allowed`},
		{"iptables: {flavour: ebt}", `iptables.flavour: found "ebt"; allowed: auto, nft, legacy`},
		{"routing: bgp", `routing: found "bgp"; that is not built yet; allowed: auto, direct`},
		{"encryption: wireguard", `encryption: found "wireguard"; that is not built yet; allowed: none`},
		{"mode: 7", `mode: found 7; allowed: auto, nftables`},
		{"dns: {enabled: maybe}", `dns.enabled: found "maybe"; true and false are allowed`},
		{"dns: {upstreams: [nine]}", `dns.upstreams: found [nine]; item 0: a list of IP addresses`},
		{"dns: 5", `dns: found 5; a group of settings is allowed`},
		{"podnetwork: {coolDown: 3d}", `podnetwork.coolDown: found "3d"; a duration from 0s to 1h0m0s is allowed`},
		{"apiServer: 10.0.0.1", `apiServer: found "10.0.0.1"; a URL like https://10.0.0.1:6443 is allowed`},
		{"clusterDomain: a..b", `clusterDomain: found "a..b"; a DNS name like cluster.local is allowed`},
		{"clusterDNS: 10.96.0.10", `clusterDNS: found "10.96.0.10"; a list of IP addresses is allowed`},
		{"logLevel: loud", `logLevel: found "loud"; allowed: debug, info, warn, error`},
		{"networkpolicy: {enabled: true}", `networkpolicy: no such setting (not built, or a typing error); allowed here: apiServer,`},
		{"dns: {enabeld: true}", `dns.enabeld: no such setting (not built, or a typing error); allowed here: enabled, upstreams`},
		{"mode: auto\nmode: nftables", `not YAML`},
		{"\x00", `not YAML`},
	} {
		_, err := Parse([]byte(tc.in))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: error is %v, want %s", tc.in, err, tc.want)
		}
	}
	_, err := Parse([]byte("mode: x\nrouting: y\nz: 1"))
	if err == nil || strings.Count(err.Error(), "settings: ") != 3 {
		t.Errorf("not every wrong key is named: %v", err)
	}
}
