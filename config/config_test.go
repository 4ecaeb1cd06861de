package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

func TestDefaults(t *testing.T) {
	c := Default()
	if c.Mode != "auto" || !c.Service.Enabled || !c.DNS.Enabled || !c.PodNetwork.Enabled ||
		c.PodNetwork.CoolDown != time.Minute {
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
	c, err := Parse([]byte("mode: nftables\ndns:\n  upstreams: [\"9.9.9.9\", \"[2620:fe::fe]:5353\"]\n" +
		"service: {enabled: false}\n"))
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

func TestStubDomainsAndHosts(t *testing.T) {
	c, err := Parse([]byte("dns:\n  upstreams: [\"tls://9.9.9.9@dns.quad9.net\"]\n  stubDomains: {Corp.example: " +
		"[10.0.0.53, \"[fd00::53]:5353\"]}\n  hosts: {printer.corp.example.: [10.0.0.9]}\n" +
		"  plainLetters: [10.0.0.53]\n"))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(c.DNS.Upstreams, c.DNS.StubDomains, c.DNS.Hosts, c.DNS.PlainLetters)
	if want := "[tls://9.9.9.9:853@dns.quad9.net] map[corp.example.:[10.0.0.53:53 [fd00::53]:5353]] " +
		"map[printer.corp.example.:[10.0.0.9]] [10.0.0.53:53]"; got != want {
		t.Errorf("read %s, want %s", got, want)
	}
	// The ConfigMap's own key for the group.
	if c, err = ParseData(map[string]string{"dns": "hosts: {a.example: [10.0.0.1]}"}); err != nil ||
		len(c.DNS.Hosts) != 1 {
		t.Errorf("as a key of the ConfigMap: %v, %v", c.DNS.Hosts, err)
	}
}

// Every wrong setting names its key, what was found and what is allowed.
func TestSettingsOfEndpointsAndHeads(t *testing.T) {
	c, err := Parse([]byte("ingress: {endpointTLSMinVersion: \"1.0\", endpointTLSRSAKeyExchange: true, " +
		"responseFields: 2048, serverHeader: none}"))
	if err != nil {
		t.Fatal(err)
	}
	if i := c.Ingress; i.EndpointTLSMinVersion != tls.VersionTLS10 || !i.EndpointTLSRSA || i.ResponseFields != 2048 ||
		i.ServerHeader != NoServerHeader {
		t.Errorf("%+v", i)
	}
	if i := Default().Ingress; i.EndpointTLSMinVersion != tls.VersionTLS12 || i.EndpointTLSRSA ||
		i.ResponseFields != 1024 || i.ResponseHeadBytes != 64<<10 ||
		i.RequestFields != 128 || i.RequestHeadBytes != 32<<10 || i.ServerHeader != "" {
		t.Errorf("defaults %+v", i)
	}
}

func TestBadSettings(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"mode: iptable", `mode: found "iptable"; allowed: auto, nftables, iptables, ipvs, ebpf`},
		{"mode: ipvs\nipvs: {scheduler: wrong}",
			`ipvs.scheduler: found "wrong"; allowed: rr, lc, dh, sh, wrr, wlc, sed, nq, mh`},
		{"ipvs: {drain: 2d}", `ipvs.drain: found "2d"; a duration from 0s to 24h0m0s is allowed`},
		{"iptables: {flavour: ebt}", `iptables.flavour: found "ebt"; allowed: auto, nft, legacy`},
		{"routing: bgp", `routing: found "bgp"; that needs bgp.enabled: true`},
		{"routing: ospf", `routing: found "ospf"; allowed: auto, direct, vxlan, bgp, cloud`},
		{"encryption: ipsec", `encryption: found "ipsec"; allowed: none, wireguard, wireguard-preferred`},
		{"encryption: wireguard\nmode: ipvs", `encryption: found wireguard with mode: ipvs; this needs ` +
			`podnetwork.encryptNodes: true`},
		{"podnetwork: {wireguardPort: 65535}",
			`podnetwork.wireguardPort: found 65535; a port from 1 to 65534 is allowed`},
		{"podnetwork: {wireguard: no}", `podnetwork.wireguard: found false; allowed: auto, kernel, userspace`},
		{"podnetwork: {keyRotation: 1m}", `podnetwork.keyRotation: found "1m"; a duration from 2m0s to 720h0m0s`},
		{"mode: 7", `mode: found 7; allowed: auto, nftables`},
		{"dns: {enabled: maybe}", `dns.enabled: found "maybe"; true and false are allowed`},
		{"dns: {upstreams: [nine]}", `dns.upstreams: found [nine]; item 0: a list of IP addresses`},
		{"dns: {upstreams: [\"tls://9.9.9.9@\"]}", `dns.upstreams: found [tls://9.9.9.9@]; item 0: a list of IP ` +
			`addresses, each with :port or without, or tls://IP@NAME`},
		{"dns: {plainLetters: [\"tls://9.9.9.9\"]}", `dns.plainLetters: found [tls://9.9.9.9]; item 0: a list of IP ` +
			`addresses, each with :port or without is allowed`},
		{"dns: {stubDomains: [9.9.9.9]}",
			`dns.stubDomains: found [9.9.9.9]; DNS names are allowed, each with a list of IP addresses`},
		{"dns: {stubDomains: {a..b: [9.9.9.9]}}", `"a..b": a DNS name like cluster.local is allowed`},
		{"dns: {stubDomains: {corp.example: [9.9.9.9, x]}}", `"corp.example": item 1: a list of IP addresses`},
		{"dns: {stubDomains: {corp.example: []}}", `"corp.example": empty; at least one is needed`},
		{"dns: {hosts: {printer.corp: [host]}}",
			`dns.hosts: found map[printer.corp:[host]]; "printer.corp": item 0: a list of IP addresses is allowed`},
		{"dns: {hosts: {A.b: [10.0.0.1], a.B.: [10.0.0.2]}}", `duplicate name`},
		{"dns: {cacheMiB: 4096}", `dns.cacheMiB: found 4096; a number from 0 to 128 is allowed`},
		{"dns: {tlsCA: x}", `dns.tlsCA: found "x"; certificates in PEM (BEGIN CERTIFICATE) are allowed`},
		{"dns: {cacheTTL: 0s}", `dns.cacheTTL: found "0s"; a duration from 1s to 24h0m0s is allowed`},
		{"dns: {negativeTTL: x}", `dns.negativeTTL: found "x"; a duration`},
		{"dns: {staleFor: 1000h}", `dns.staleFor: found "1000h"; a duration from 0s to 168h0m0s is allowed`},
		{"dns: 5", `dns: found 5; a group of settings is allowed`},
		{"podnetwork: {coolDown: 3d}", `podnetwork.coolDown: found "3d"; a duration from 0s to 1h0m0s is allowed`},
		{"apiServer: 10.0.0.1", `apiServer: found "10.0.0.1"; a URL like https://10.0.0.1:6443 is allowed`},
		{"clusterDomain: a..b", `clusterDomain: found "a..b"; a DNS name like cluster.local is allowed`},
		{"clusterDNS: 10.96.0.10", `clusterDNS: found "10.96.0.10"; a list of IP addresses is allowed`},
		{"logLevel: loud", `logLevel: found "loud"; allowed: debug, info, warn, error`},
		{"gateway: {enabled: true}",
			`gateway: unknown setting (not built, or misspelled); allowed here: apiServer,`},
		{"dns: {enabeld: true}", `dns.enabeld: unknown setting (not built, or misspelled); allowed here: ` +
			`enabled, pods, extraDomains, upstreams`},
		{"dns: {pods: secure}", `dns.pods: found "secure"; allowed: disabled, insecure, verified`},
		{"dns: {extraDomains: [a..b]}", `dns.extraDomains: found [a..b]; item 0: a list of DNS names is allowed`},
		{"ingress: {endpointTLSMinVersion: 1.0}",
			`ingress.endpointTLSMinVersion: found 1; allowed, in quotation marks: "1.0", "1.1", "1.2", "1.3"`},
		{"ingress: {endpointTLSMinVersion: \"0.9\"}", `ingress.endpointTLSMinVersion: found "0.9"; allowed`},
		{"ingress: {responseFields: 10}", `ingress.responseFields: found 10; a number from 32 to 8192 is allowed`},
		{"ingress: {requestHeadBytes: 1048576}", `a number from 4096 to 262144 is allowed`},
		{"ingress: {serverHeader: \"a\\r\\nb: c\"}", `up to 128 visible ASCII characters are allowed`},
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

func data(t *testing.T, text string) map[string]string {
	t.Helper()
	var cm struct {
		Data map[string]string `json:"data"`
	}
	if err := yaml.UnmarshalStrict([]byte(text), &cm); err != nil {
		t.Fatal(err)
	}
	return cm.Data
}

// The mission sets mode and ipvs in the ConfigMap's data itself. Values there are text,
// so the group is a block of it, or a key with a dot.
func TestSettingsAsKeysOfTheConfigMap(t *testing.T) {
	for _, in := range []string{
		"data:\n  mode: \"ipvs\"\n  ipvs: |\n    scheduler: \"lc\"  # least connections\n",
		"data:\n  mode: ipvs\n  ipvs.scheduler: lc\n",
		"data:\n  config.yaml: |\n    mode: ipvs\n    ipvs:\n      scheduler: lc\n",
		"data:\n  mode: ipvs\n  config.yaml: |\n    mode: auto\n    ipvs: {scheduler: lc}\n",
		"data:\n  config.conf: |\n    apiVersion: kubeproxy.config.k8s.io/v1alpha1\n    kind: " +
			"KubeProxyConfiguration\n    mode: ipvs\n    ipvs: {scheduler: lc}\n",
	} {
		c, err := ParseData(data(t, in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if c.Mode != "ipvs" || c.IPVS.Scheduler != "lc" || c.IPVS.Drain != 15*time.Minute {
			t.Errorf("%s: mode %s, ipvs %+v", in, c.Mode, c.IPVS)
		}
	}
	with := data(t, "data:\n  mode: iptables\n")
	with["config.yaml"] = Commented()
	if c, err := ParseData(with); err != nil || c.Mode != "iptables" {
		t.Errorf("beside the file that comes with Wayleave: mode %s: %v", c.Mode, err)
	}
}

// Values of the ConfigMap wayleave-settings replace those of the manifest's ConfigMap, also defaults; what they do not
// name stays. Keys beside them that say something else are errors.
func TestSettingsOfTheOperatorReplaceTheManifests(t *testing.T) {
	manifest := strings.NewReplacer("mode: auto", "mode: iptables", "  scheduler: rr", "  scheduler: lc").
		Replace(Commented())
	c, err := ParseData(map[string]string{"config.yaml": manifest,
		"settings.yaml": "mode: ipvs\ndns: {enabled: false}\n"})
	if err != nil || c.Mode != "ipvs" || c.IPVS.Scheduler != "lc" || c.DNS.Enabled || !c.Service.Enabled {
		t.Errorf("mode %s, scheduler %s, dns %t, service %t: %v", c.Mode, c.IPVS.Scheduler, c.DNS.Enabled,
			c.Service.Enabled, err)
	}
	if c, err = ParseData(map[string]string{"config.yaml": manifest, "settings.yaml": "mode: auto"}); c.Mode != "auto" {
		t.Errorf("a default of the operator's: mode %s: %v", c.Mode, err)
	}
	// A copy of a whole config.yaml, beside kube-proxy's configuration and a key.
	whole := map[string]string{"config.yaml": Commented(), "settings.yaml": Commented(), "dns.enabled": "false",
		"config.conf": "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n"}
	if c, err = ParseData(whole); err != nil || c.Mode != "ipvs" || c.DNS.Enabled {
		t.Errorf("a copy of all defaults: mode %s, dns %t: %v", c.Mode, c.DNS.Enabled, err)
	}
	for in, want := range map[string]string{
		"moed: ipvs":       "settings: moed: unknown setting",
		"mode: ipvz":       `settings: mode: found "ipvz"; allowed: auto`,
		"- mode":           "settings.yaml: settings: not YAML",
		"mode: nftables":   `settings: mode: found "nftables" in settings.yaml and "ipvs" in the ConfigMap's key mode`,
		"mode: a\nmode: b": "settings.yaml: settings: not YAML",
	} {
		_, err := ParseData(map[string]string{"config.yaml": manifest, "settings.yaml": in, "mode": "ipvs"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error is %v, want %s", in, err, want)
		}
	}
}

// The manifest's file says of which version it is: agents of the version before, which may restart while the ConfigMap
// is new and they are not, ignore its new keys.
func TestTheManifestsFileNamesItsVersion(t *testing.T) {
	if want := fmt.Sprintf("\nsettingsVersion: %d\n", Version); !strings.Contains(Commented(), want) {
		t.Errorf("no %q in the file", want)
	}
	if c, err := Parse([]byte(Commented())); err != nil || len(c.Unused) > 0 {
		t.Errorf("unused %v, %v", c.Unused, err)
	}
}

// A rollback finds settings of a later version. Their unknown keys are reported and have no effect; all else of the
// file is checked as ever. A file of this version, or of none, may have no unknown key.
func TestUnknownKeysOfALaterVersionAreReported(t *testing.T) {
	const later = "settingsVersion: 22\nmode: ipvs\nwarp: {speed: 9}\ndns: {warp: true}\nnone: 1\n"
	for _, file := range []string{"config.yaml", "settings.yaml"} {
		c, err := ParseData(map[string]string{file: later})
		if err != nil || c.Mode != "ipvs" || len(c.Unused) != 3 || !strings.HasPrefix(c.Unused[0],
			file+": dns.warp: not used") {
			t.Errorf("%s: mode %s, unused %q: %v", file, c.Mode, c.Unused, err)
		}
		for in, want := range map[string]string{
			strings.Replace(later, "22", "1", 1):                 "settings: warp: unknown setting",
			strings.Replace(later, "settingsVersion: 22", "", 1): "settings: warp: unknown setting",
			strings.Replace(later, "22", "new",
				1): `settings: settingsVersion: found "new"; a number from 1`,
			strings.Replace(later, "22", "1.5",
				1): "settings: settingsVersion: found 1.5; a number from 1",
			strings.Replace(later, "22", "0",
				1): "settings: settingsVersion: found 0; a number from 1",
			strings.Replace(later, "ipvs", "warp", 1):                 `settings: mode: found "warp"; allowed: auto`,
			strings.Replace(later, "dns: {warp: true}", "dns: on", 1): "settings: dns: found",
		} {
			if _, err := ParseData(map[string]string{file: in}); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q: error is %v, want %s", file, in, err, want)
			}
		}
	}
}

func TestBadKeysOfTheConfigMap(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"data: {mode: ipvz}", `settings: mode: found "ipvz"; allowed: auto, nftables, iptables, ipvs, ebpf`},
		{"data: {ipvs: 'scheduler: best'}", `settings: ipvs.scheduler: found "best"; allowed: rr`},
		{"data: {ipvs: rr}", `settings: ipvs: found "rr"; a group of settings is allowed`},
		{"data: {ipvs: 'shedule: rr'}",
			`settings: ipvs.shedule: unknown setting (not built, or misspelled); allowed here: scheduler, drain`},
		{"data: {ipvs: '{'}", `settings: ipvs: not YAML`},
		{"data: {moed: ipvs}", `settings: moed: unknown setting`},
		{"data: {config.yml: 'mode: ipvs'}", `settings: config.yml: unknown setting`},
		{"data: {mode: ipvs, config.yaml: 'mode: iptables'}", `settings: mode: found "iptables" in config.yaml and ` +
			`"ipvs" in the ConfigMap's key mode; only one value is allowed`},
	} {
		_, err := ParseData(data(t, tc.in))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error is %v, want %s", tc.in, err, tc.want)
		}
	}
}

// What kubeadm writes asks for nothing that is not done, but for what is not of use.
func TestTheConfigurationOfKubeadmsKubeProxy(t *testing.T) {
	raw, err := os.ReadFile("testdata/kubeadm-config.conf")
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseData(map[string]string{"config.conf": string(raw), "kubeconfig.conf": "apiVersion: v1"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"config.conf: clientConnection.kubeconfig: not used, the setting apiServer, or the kubelet, has the API server",
		"config.conf: clusterCIDR: not used, the podCIDRs of the nodes define which addresses are pods",
		"kubeconfig.conf: not used; Wayleave has its own service account",
	}
	if c.Mode != "auto" || c.IPVS.Scheduler != "rr" || !slices.Equal(c.Unused, want) {
		t.Errorf("mode %s, scheduler %s, unused %q", c.Mode, c.IPVS.Scheduler, c.Unused)
	}
}

// A field of kube-proxy's settings is done, or refused by name, or named as of no use.
func TestFieldsOfKubeProxyConfiguration(t *testing.T) {
	const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
	for _, tc := range []struct{ in, err, unused string }{
		{in: head + "mode: ipvs\nipvs: {scheduler: sh, strictARP: true}\nnodePortAddresses: [10.0.0.0/8]"},
		{in: head + "nodePortAddresses: [primary]\niptables: {masqueradeBit: 14, localhostNodePorts: false}"},
		{in: head + "nodePortAddresses: [ten]", err: `settings: config.conf: nodePortAddresses: found [ten]; item ` +
			`0: a list of CIDRs, primary, localhost and all is allowed`},
		{in: head + "mode: userspace", err: `settings: config.conf: mode: found "userspace"; allowed: auto, nftables`},
		{in: head + "ipvs: {scheduler: best}", err: `settings: config.conf: ipvs.scheduler: found "best"; allowed: rr`},
		{in: head + "iptables: {masqueradeAll: true}",
			err: `settings: config.conf: iptables.masqueradeAll: found true; not built`},
		{in: head + "nftables: {masqueradeBit: 15}",
			err: `settings: config.conf: nftables.masqueradeBit: found 15; the masquerade mark`},
		{in: head + "ipvs: {excludeCIDRs: [10.0.0.0/8]}",
			err: `settings: config.conf: ipvs.excludeCIDRs: found [10.0.0.0/8]; not built`},
		{in: head + "ipvs: {udpTimeout: 30s}", err: `settings: config.conf: ipvs.udpTimeout: found "30s"; not built`},
		{in: head + "healthzBindAddress: 0.0.0.0:10300",
			err: `settings: config.conf: healthzBindAddress: found "0.0.0.0:10300"; health is served at :10256`},
		{in: head + "ipvs: {sheduler: rr}",
			err: `settings: config.conf: ipvs.sheduler: KubeProxyConfiguration has no such field`},
		{in: head + "moed: ipvs", err: `settings: config.conf: moed: KubeProxyConfiguration has no such field`},
		{in: "mode: ipvs",
			err: `settings: config.conf: apiVersion: found "nothing"; kubeproxy.config.k8s.io/v1alpha1 is allowed`},
		{in: head + "mode: 7", err: `settings: config.conf: mode: found 7; allowed`},
		{in: "\x00", err: `settings: config.conf: not YAML`},
		{in: head + "conntrack: {maxPerCore: 32768, min: null, tcpCloseWaitTimeout: 1h0m0s}"},
		{in: head + "conntrack: {maxPerCore: many}",
			err: `settings: config.conf: conntrack.maxPerCore: found "many"; a number from 0 to`},
		{in: head + "conntrack: {max: 7}",
			err: "settings: config.conf: conntrack.max: KubeProxyConfiguration has no such field"},
		{in: head + "ipvs: {syncPeriod: 30s}", unused: "config.conf: ipvs.syncPeriod: not used"},
		{in: head + "featureGates: {X: true}", unused: "config.conf: featureGates: not used"},
	} {
		c, err := ParseData(map[string]string{"config.conf": tc.in})
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%q: error is %v, want %s", tc.in, err, tc.err)
		}
		if got := strings.Join(c.Unused, "\n"); (got == "") != (tc.unused == "") || !strings.HasPrefix(got, tc.unused) {
			t.Errorf("%q: unused: %q, want %s", tc.in, got, tc.unused)
		}
	}
}

// The folder is as the kubelet mounts it: links to files in a folder that it swaps.
func TestReadAMountedConfigMap(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/..2026", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"config.yaml": Commented(), "mode": "ipvs\n",
		"ipvs": "scheduler: \"wlc\"\n"} {
		err := os.WriteFile(dir+"/..2026/"+name, []byte(text), 0o600)
		if err := errors.Join(err, os.Symlink("..data/"+name, dir+"/"+name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("..2026", dir+"/..data"); err != nil {
		t.Fatal(err)
	}
	c, err := Read(dir)
	if err != nil || c.Mode != "ipvs" || c.IPVS.Scheduler != "wlc" {
		t.Errorf("read %+v: %v", c, err)
	}
	if _, err := Read(dir + "/none"); err == nil {
		t.Error("a folder that is not there was read")
	}
}
