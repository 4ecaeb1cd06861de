package config

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

const proxyHead = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

// values are what each field of KubeProxyConfiguration is set to by its type, other than the default.
func values(kind string) string {
	return map[string]string{"bool": "true", "int32": "7", "*int32": "7", "float32": "7", "string": "seven",
		"[]string": "[10.7.0.0/16]", "map": "{Seven: true}", "Duration": "7s", "*bool": "true",
		"vmodule": "[{filePattern: seven, verbosity: 7}]"}[kind]
}

// Each field of kube-proxy's own type, as api/judge finds them, becomes a setting, or is named
// with its key: none is lost in silence.
func TestNoFieldOfKubeProxyIsLostInSilence(t *testing.T) {
	raw, err := os.ReadFile("testdata/kubeproxy-fields.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(raw)) {
		key, kind, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(line, "#") || key == "apiVersion" || key == "kind" {
			continue
		}
		n++
		v := values(kind)
		switch key {
		case "mode":
			v = "ipvs"
		case "ipvs.scheduler":
			v = "sh"
		}
		if v == "" {
			t.Errorf("%s: no value for a %s", key, kind)
		}
		text := v
		parts := strings.Split(key, ".")
		for i := len(parts) - 1; i > 0; i-- {
			text = "{" + parts[i] + ": " + text + "}"
		}
		got, err := ImportKubeProxy([]byte(proxyHead+parts[0]+": "+text+"\n"), nil)
		if err != nil {
			t.Errorf("%s: %v", key, err)
			continue
		}
		named := strings.Join(append(got.Lost, got.Notes...), "\n")
		switch f, _, _ := strings.Cut(key, "."); {
		case slices.Contains([]string{"mode", "ipvs.scheduler", "nodePortAddresses"}, key), f == "conntrack":
			if !strings.Contains(string(got.Settings), strings.Trim(v, "[]")) || named != "" {
				t.Errorf("%s became %q, %q", key, got.Settings, named)
			}
			if _, err := Parse(got.Settings); err != nil {
				t.Errorf("%s: %v", key, err)
			}
		case key == "ipvs.strictARP": // it is done anyway
			if named != "" {
				t.Errorf("%s: %q", key, named)
			}
		default:
			if !strings.Contains(named, proxyFile+": "+key) || strings.Contains(named, "no such field") ||
				len(got.Settings) > 0 {
				t.Errorf("%s became %q, %q", key, got.Settings, named)
			}
		}
	}
	if n < 55 {
		t.Errorf("only %d fields", n)
	}
	got, err := ImportKubeProxy([]byte(proxyHead+"ipvs: {sheduler: rr}\nmoed: ipvs\n"), nil)
	if err != nil || len(got.Lost) != 2 || !strings.Contains(got.Lost[0],
		"ipvs.sheduler: KubeProxyConfiguration has no such field") {
		t.Errorf("unknown fields: %+v, %v", got, err)
	}
}

// Likewise each flag of kube-proxy.
func TestNoFlagOfKubeProxyIsLostInSilence(t *testing.T) {
	raw, err := os.ReadFile("testdata/kubeproxy-flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	table, n := proxyFlags(), 0
	for line := range strings.Lines(string(raw)) {
		name := strings.TrimSpace(line)
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		n++
		v := map[byte]string{'b': "true", 'n': "7", 'l': "10.7.0.0/16,primary", 'm': "Seven=true",
			'p': "7"}[table[name].kind]
		switch name {
		case "proxy-mode":
			v = "ipvs"
		case "ipvs-scheduler":
			v = "sh"
		case "":
			v = "seven"
		}
		if v == "" {
			v = "seven"
		}
		for _, args := range [][]string{{"--" + name + "=" + v}, {"/usr/local/bin/kube-proxy", "-" + name, v}} {
			if len(args) > 1 && table[name].kind == 'b' {
				args = args[:2]
			}
			got, err := ImportKubeProxy(nil, args)
			named := strings.Join(append(got.Lost, got.Notes...), "\n")
			done := name == "ipvs-strict-arp"
			if isSetting := len(got.Settings) > 0; err != nil || strings.Contains(named, "no such flag") || !done &&
				isSetting == strings.Contains(named, "--"+name+": ") {
				t.Errorf("%v became %q, %q, %v", args, got.Settings, named, err)
			}
		}
	}
	if n != len(table) {
		t.Errorf("%d flags are listed, %d are known", n, len(table))
	}
}

// What people have: kubeadm's file loses nothing that matters, a tuned one is named line by line.
func TestImportsOfKubeProxy(t *testing.T) {
	raw, err := os.ReadFile("testdata/kubeadm-config.conf")
	if err != nil {
		t.Fatal(err)
	}
	got, err := ImportKubeProxy(raw, []string{"--config=/var/lib/kube-proxy/config.conf", "--hostname-override=n1",
		"--proxy-mode=ipvs"})
	if err != nil || len(got.Lost) > 0 || len(got.Settings) > 0 || len(got.Notes) != 5 {
		t.Errorf("kubeadm's became %q, lost %q, notes %q, %v", got.Settings, got.Lost, got.Notes, err)
	}
	got, err = ImportKubeProxy([]byte(proxyHead+"mode: ipvs\nipvs: {scheduler: wlc, udpTimeout: "+
		"30s}\nnodePortAddresses: [primary, localhost, 192.0.2.0/24]\nconntrack: {maxPerCore: 0, min: 1, "+
		"tcpCloseWaitTimeout: null}\n"), nil)
	want := "ipvs:\n  scheduler: wlc\nmode: ipvs\nservice:\n  conntrack:\n    maxPerCore: 0\n    min: 1\n  " +
		"nodePortAddresses:\n  - primary\n  - localhost\n  - 192.0.2.0/24\n"
	if err != nil || string(got.Settings) != want || len(got.Lost) != 1 || len(got.Notes) != 0 {
		t.Errorf("became %q, lost %q, notes %q, %v", got.Settings, got.Lost, got.Notes, err)
	}
	// The ConfigMap as kubectl prints it.
	got, err = ImportKubeProxy([]byte("apiVersion: v1\nkind: ConfigMap\ndata:\n  config.conf: |\n    apiVersion: "+
		"kubeproxy.config.k8s.io/v1alpha1\n    kind: KubeProxyConfiguration\n    mode: ipvs\n"), nil)
	if err != nil || string(got.Settings) != "mode: ipvs\n" || len(got.Lost)+len(got.Notes) > 0 {
		t.Errorf("the ConfigMap became %q, lost %q, notes %q, %v", got.Settings, got.Lost, got.Notes, err)
	}
	for args, lost := range map[string]string{
		"--proxy-mode=userspace": `--proxy-mode: found "userspace"; `,
		"--masquerade-all":       "--masquerade-all: found true; not built", "--masquerade-all=false": "",
		"--masquerade-all=maybe": `--masquerade-all: found "maybe"; true or false is allowed`,
		"--config=/x":            "--config: /x is not read: give its content by -f",
		"--nonsense=1":           "--nonsense: kube-proxy v1.37 has no such flag", "stray": "stray: is not a flag",
		"--nodeport-addresses=ten": `--nodeport-addresses: found [ten]; item 0`,
		"--healthz-port=10256":     "",
		"--healthz-port=0":         `--healthz-port: found "0.0.0.0:0"; health is served at :10256`,
		"--ipvs-strict-arp":        "",
	} {
		got, err := ImportKubeProxy(nil, strings.Fields(args))
		if err != nil || (lost == "") != (len(got.Lost) == 0) ||
			!strings.HasPrefix(fmt.Sprint(strings.Join(got.Lost, "\n")), lost) {
			t.Errorf("%s: lost %q, %v; want %s", args, got.Lost, err, lost)
		}
	}
	if _, err := ImportKubeProxy([]byte("\x00"), nil); err == nil {
		t.Error("what is not YAML was read")
	}
}

// Files as people have them: several documents, ConfigMaps with another key, and arguments of k3s without dashes.
func TestShapesOfKubeProxysConfiguration(t *testing.T) {
	const conf = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n"
	indented := strings.ReplaceAll("\n"+strings.TrimSpace(conf), "\n", "\n    ")
	for _, tc := range []struct{ what, in, lost string }{
		{"one document", conf, ""},
		{"kubeadm's configuration", "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n---\n" + conf,
			"document 1: ClusterConfiguration is not read; only one KubeProxyConfiguration is"},
		{"two of them", conf + "---\n" + conf, "document 2: KubeProxyConfiguration is not read; only one " +
			"KubeProxyConfiguration is"},
		{"a document of comments", "# kube-proxy\n---\n" + conf + "---\n", ""},
		{"a ConfigMap of EKS", "apiVersion: v1\nkind: ConfigMap\ndata:\n  config: |-" + indented + "\n", ""},
		{"kubeadm's ConfigMap", "apiVersion: v1\nkind: ConfigMap\ndata:\n  config.conf: |-" + indented +
			"\n  kubeconfig.conf: |-\n    kind: Config\n", ""},
	} {
		got, err := ImportKubeProxy([]byte(tc.in), nil)
		if err != nil || string(got.Settings) != "mode: ipvs\n" || strings.Join(got.Lost, "\n") != tc.lost {
			t.Errorf("%s: %q, lost %q, %v", tc.what, got.Settings, got.Lost, err)
		}
	}
	got, err := ImportKubeProxy(nil, []string{"proxy-mode=ipvs", "ipvs-scheduler=rr", "unknown=1"})
	if err != nil || string(got.Settings) != "ipvs:\n  scheduler: rr\nmode: ipvs\n" ||
		strings.Join(got.Lost, "\n") != "unknown=1: is not a flag" {
		t.Errorf("arguments of k3s: %q, lost %q, %v", got.Settings, got.Lost, err)
	}
}

// Configurations of public reports.
func TestReportsOfKubeProxysConfiguration(t *testing.T) {
	const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
	for _, tc := range []struct {
		report, file string
		flags        []string
		want         string
		lost         string
	}{
		{report: "hetzner-k3s#191", flags: []string{"proxy-mode=ipvs", "ipvs-scheduler=lc"},
			want: "ipvs:\n  scheduler: lc\nmode: ipvs\n"},
		{report: "rancher#35430", flags: []string{"ipvs-strict-arp=true", "proxy-mode=ipvs"}, want: "mode: ipvs\n"},
		{report: "k3s#11153", flags: []string{"kube-proxy", "--cluster-cidr=10.42.0.0/16", "--conntrack-max-per-core=0",
			"--conntrack-tcp-timeout-close-wait=0s", "--conntrack-tcp-timeout-established=0s",
			"--healthz-bind-address=127.0.0.1", "--hostname-override=n1", "--kubeconfig=/k", "--proxy-mode=iptables"},
			want: "mode: iptables\nservice:\n  conntrack:\n    maxPerCore: 0\n    tcpCloseWaitTimeout: 0s\n    " +
				"tcpEstablishedTimeout: 0s\n",
			lost: "--healthz-bind-address: found \"127.0.0.1\"; health is served at :10256"},
		{report: "kubernetes#123105", file: head + "nodePortAddresses: [primary]\n",
			want: "service:\n  nodePortAddresses:\n  - primary\n"},
		{report: "kubernetes#105832", file: head + "clusterCIDR: 10.244.0.0/16,fd00:10:244::/56\n"},
		{report: "kubespray#4788", file: head + "mode: ipvs\nipvs: {strictARP: true, excludeCIDRs: null}\n",
			want: "mode: ipvs\n"},
	} {
		got, err := ImportKubeProxy([]byte(tc.file), tc.flags)
		if err != nil || string(got.Settings) != tc.want || strings.Join(got.Lost, "\n") != tc.lost {
			t.Errorf("%s: got %q, lost %q, %v; want %q, lost %q", tc.report, got.Settings, got.Lost, err, tc.want,
				tc.lost)
		}
	}
}

func FuzzImportKubeProxy(f *testing.F) {
	f.Add(proxyHead+"mode: ipvs\n", "--proxy-mode=ipvs --nodeport-addresses a,b")
	f.Fuzz(func(t *testing.T, file, flags string) {
		got, err := ImportKubeProxy([]byte(file), strings.Fields(flags))
		if err != nil {
			return
		}
		if _, err := Parse(got.Settings); err != nil && len(got.Settings) > 0 {
			t.Errorf("%q %q became %q: %v", file, flags, got.Settings, err)
		}
	})
}
