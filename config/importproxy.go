package config

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// Imported is the result of an import.
type Imported struct {
	// Settings is a settings file; empty for none.
	Settings []byte
	// Lost lists fields that are not carried over, Notes fields that need no setting; a line each.
	Lost, Notes []string
}

// ImportKubeProxy converts a KubeProxyConfiguration and flags of kube-proxy to settings. raw is empty if there are
// only flags. Each field and flag becomes a setting or is reported, unless it matches what Wayleave does anyway. The
// error means that the file is not YAML.
func ImportKubeProxy(raw []byte, flags []string) (Imported, error) {
	i := &proxyImport{checked: newReader(), found: map[string]any{}}
	if len(raw) > 0 {
		tree, err := proxyTree(i.document(raw))
		if err != nil {
			return Imported{}, err
		}
		i.tree("", tree)
	}
	i.flags(flags, len(raw) > 0)
	if len(i.found) > 0 {
		out, err := yaml.Marshal(i.found)
		if err != nil {
			return Imported{}, fmt.Errorf("settings: %w", err)
		}
		i.Settings = out
	}
	return i.Imported, nil
}

// document returns the KubeProxyConfiguration among the documents of a file, as kubeadm's have several, and reports the
// others. A file without one is returned unchanged.
func (i *proxyImport) document(raw []byte) []byte {
	docs := bytes.Split(raw, []byte("\n---"))
	found := slices.IndexFunc(docs, func(d []byte) bool { return kindOf(inConfigMap(d)) == proxyKind })
	if found < 0 {
		return inConfigMap(raw)
	}
	for n, d := range docs {
		if kind := kindOf(d); n != found && kind != "" {
			i.lost(fmt.Sprintf("document %d", n+1), "%s is not read; only one %s is", kind, proxyKind)
		}
	}
	return inConfigMap(docs[found])
}

func kindOf(doc []byte) string {
	var in struct {
		Kind string `json:"kind"`
	}
	if err := yaml.Unmarshal(doc, &in); err != nil {
		return ""
	}
	return in.Kind
}

// inConfigMap returns the KubeProxyConfiguration in a ConfigMap: of kubeadm the key config.conf, of others another one.
// Other input is returned unchanged.
func inConfigMap(raw []byte) []byte {
	var in struct {
		Kind string            `json:"kind"`
		Data map[string]string `json:"data"`
	}
	if err := yaml.Unmarshal(raw, &in); err != nil || in.Kind != "ConfigMap" {
		return raw
	}
	for _, key := range append([]string{proxyFile}, slices.Sorted(maps.Keys(in.Data))...) {
		if kindOf([]byte(in.Data[key])) == proxyKind {
			return []byte(in.Data[key])
		}
	}
	return raw
}

// proxyImport is a running import.
type proxyImport struct {
	Imported
	checked *reader
	found   map[string]any
}

func (i *proxyImport) lost(at, format string, args ...any) {
	i.Lost = append(i.Lost, at+": "+fmt.Sprintf(format, args...))
}

// tree reads fields; flag is the flag that they come from, empty for a file.
func (i *proxyImport) tree(flag string, tree map[string]any) {
	proxyLeaves("", tree, func(key string, f *proxyField, v any) {
		at := proxyFile + ": " + key
		if flag != "" {
			at = flag
		}
		switch {
		case f == nil:
			i.lost(at, "%s has no such field", proxyKind)
		case f.isDone(v):
		case f.is != "":
			i.set(at, f.is, v)
		case f.moot:
			i.Notes = append(i.Notes, at+": found "+show(v)+"; "+f.why)
		default:
			i.lost(at, "found %s; %s", show(v), f.why)
		}
	})
}

// set records the value of a field that becomes a setting.
func (i *proxyImport) set(at, key string, v any) {
	n := slices.IndexFunc(i.checked.table, func(s setting) bool { return s.key == key })
	var c Config
	if err := i.checked.table[n].set(&c, v); err != nil {
		i.lost(at, "found %s; %v", show(v), err)
		return
	}
	group := i.found
	parts := strings.Split(key, ".")
	for _, p := range parts[:len(parts)-1] {
		sub, ok := group[p].(map[string]any)
		if !ok {
			sub = map[string]any{}
			group[p] = sub
		}
		group = sub
	}
	group[parts[len(parts)-1]] = v
}

// flags reads a command line. If there is a file, too, kube-proxy ignores most flags.
func (i *proxyImport) flags(args []string, file bool) {
	table := proxyFlags()
	for n := 0; n < len(args); n++ {
		name, v, hasValue := strings.Cut(strings.TrimLeft(args[n], "-"), "=")
		if _, known := table[name]; !strings.HasPrefix(args[n], "-") && !(known && hasValue) { // k3s: NAME=VALUE
			if path.Base(args[n]) != "kube-proxy" {
				i.lost(args[n], "is not a flag")
			}
			continue
		}
		f, ok := table[name]
		switch {
		case !ok && n+1 < len(args) && !hasValue && !strings.HasPrefix(args[n+1], "-"):
			n++ // its value
		case ok && !hasValue && f.kind == 'b':
			v = "true"
		case ok && !hasValue && n+1 < len(args):
			n++
			v = args[n]
		}
		at := "--" + name
		switch {
		case !ok:
			i.lost(at, "kube-proxy v1.37 has no such flag")
		case name == "config" && !file:
			i.lost(at, "%s is not read: give its content by -f", v)
		case f.key == "":
			i.Notes = append(i.Notes, at+": "+f.why)
		case file && name != "hostname-override":
			i.Notes = append(i.Notes, at+": kube-proxy ignores it beside a file of settings")
		default:
			value, err := f.value(v)
			if err != nil {
				i.lost(at, "found %q; %v", v, err)
				continue
			}
			i.tree(at, nest(f.key, value))
		}
	}
}

// nest converts "a.b" and v to nested maps.
func nest(key string, v any) map[string]any {
	parts := strings.Split(key, ".")
	for _, p := range slices.Backward(parts) {
		v = map[string]any{p: v}
	}
	out, _ := v.(map[string]any)
	return out
}

// proxyFlag describes a flag of kube-proxy: the field that it sets, or why there is none.
type proxyFlag struct {
	key string
	// kind of the value: 's' text, 'b' boolean, 'n' number, 'l' list, 'm' map, 'p' a port.
	kind byte
	why  string
}

// value parses the text of a flag as YAML would.
func (f proxyFlag) value(s string) (any, error) {
	switch f.kind {
	case 'b':
		b, err := strconv.ParseBool(s)
		if err != nil {
			return nil, fmt.Errorf("true or false is allowed")
		}
		return b, nil
	case 'n':
		n, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return nil, fmt.Errorf("a number is allowed")
		}
		return n, nil
	case 'l':
		var out []any
		for item := range strings.SplitSeq(s, ",") {
			if item = strings.TrimSpace(item); item != "" {
				out = append(out, item)
			}
		}
		return out, nil
	case 'm':
		out := map[string]any{}
		for item := range strings.SplitSeq(s, ",") {
			k, v, _ := strings.Cut(item, "=")
			out[strings.TrimSpace(k)] = v == "" || v == "true"
		}
		return out, nil
	case 'p':
		return "0.0.0.0:" + s, nil
	}
	return s, nil
}

// proxyFlags returns all flags, as of Kubernetes 1.37.
func proxyFlags() map[string]proxyFlag {
	out := map[string]proxyFlag{
		"config": {why: "its content is what -f reads"}, "write-config-to": {why: "an action, not a setting"},
		"cleanup":   {kind: 'b', why: "an action, not a setting"},
		"init-only": {kind: 'b', why: "an action, not a setting"},
		"version":   {kind: 'b', why: "an action, not a setting"}, "help": {kind: 'b', why: "an action, not a setting"},
		"master": {why: "the setting apiServer, or the kubelet, has the API server"},
	}
	maps.Copy(out, map[string]proxyFlag{
		"proxy-mode": {key: "mode"}, "ipvs-scheduler": {key: "ipvs.scheduler"},
		"nodeport-addresses": {key: "nodePortAddresses", kind: 'l'},
		"feature-gates":      {key: "featureGates", kind: 'm'}, "kubeconfig": {key: "clientConnection.kubeconfig"},
		"kube-api-content-type": {key: "clientConnection.contentType"},
		"kube-api-burst":        {key: "clientConnection.burst", kind: 'n'},
		"kube-api-qps": {key: "clientConnection.qps",
			kind: 'n'}, "hostname-override": {key: "hostnameOverride"},
		"bind-address": {key: "bindAddress"}, "healthz-bind-address": {key: "healthzBindAddress"},
		"metrics-bind-address":            {key: "metricsBindAddress"},
		"healthz-port":                    {key: "healthzBindAddress", kind: 'p'},
		"metrics-port":                    {key: "metricsBindAddress", kind: 'p'},
		"bind-address-hard-fail":          {key: "bindAddressHardFail", kind: 'b'},
		"profiling":                       {key: "enableProfiling", kind: 'b'},
		"show-hidden-metrics-for-version": {key: "showHiddenMetricsForVersion"},
		"iptables-masquerade-bit":         {key: "iptables.masqueradeBit", kind: 'n'},
		"masquerade-all":                  {key: "iptables.masqueradeAll", kind: 'b'},
		"iptables-localhost-nodeports":    {key: "iptables.localhostNodePorts", kind: 'b'},
		"iptables-sync-period":            {key: "iptables.syncPeriod"},
		"iptables-min-sync-period":        {key: "iptables.minSyncPeriod"},
		"ipvs-sync-period":                {key: "ipvs.syncPeriod"},
		"ipvs-min-sync-period":            {key: "ipvs.minSyncPeriod"},
		"ipvs-exclude-cidrs":              {key: "ipvs.excludeCIDRs", kind: 'l'},
		"ipvs-strict-arp":                 {key: "ipvs.strictARP", kind: 'b'},
		"ipvs-tcp-timeout":                {key: "ipvs.tcpTimeout"},
		"ipvs-tcpfin-timeout":             {key: "ipvs.tcpFinTimeout"}, "ipvs-udp-timeout": {key: "ipvs.udpTimeout"},
		"detect-local-mode": {key: "detectLocalMode"}, "pod-bridge-interface": {key: "detectLocal.bridgeInterface"},
		"pod-interface-name-prefix": {key: "detectLocal.interfaceNamePrefix"},
		"cluster-cidr":              {key: "clusterCIDR"}, "oom-score-adj": {key: "oomScoreAdj", kind: 'n'},
		"config-sync-period":     {key: "configSyncPeriod"},
		"conntrack-max-per-core": {key: "conntrack.maxPerCore", kind: 'n'}, "conntrack-min": {key: "conntrack.min",
			kind: 'n'}, "conntrack-tcp-be-liberal": {key: "conntrack.tcpBeLiberal", kind: 'b'},
		"conntrack-tcp-timeout-established": {key: "conntrack.tcpEstablishedTimeout"},
		"conntrack-tcp-timeout-close-wait":  {key: "conntrack.tcpCloseWaitTimeout"},
		"conntrack-udp-timeout":             {key: "conntrack.udpTimeout"},
		"conntrack-udp-timeout-stream":      {key: "conntrack.udpStreamTimeout"},
		"v":                                 {key: "logging.verbosity"}, "vmodule": {key: "logging.vmodule"},
		"logging-format":            {key: "logging.format"},
		"log-flush-frequency":       {key: "logging.flushFrequency"},
		"log-text-split-stream":     {key: "logging.options.text.splitStream", kind: 'b'},
		"log-text-info-buffer-size": {key: "logging.options.text.infoBufferSize"},
		"log-json-split-stream":     {key: "logging.options.json.splitStream", kind: 'b'},
		"log-json-info-buffer-size": {key: "logging.options.json.infoBufferSize"},
		"windows-service":           {key: "windowsRunAsService", kind: 'b'},
		"source-vip":                {key: "winkernel.sourceVip"},
		"network-name":              {key: "winkernel.networkName"},
		"enable-dsr":                {key: "winkernel.enableDSR", kind: 'b'},
		"root-hnsendpoint-name":     {key: "winkernel.rootHnsEndpointName"},
		"forward-healthcheck-vip":   {key: "winkernel.forwardHealthCheckVip", kind: 'b'},
	})
	return out
}
