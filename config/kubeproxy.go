package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// The only version of kube-proxy's configuration.
const (
	proxyVersion = "kubeproxy.config.k8s.io/v1alpha1"
	proxyKind    = "KubeProxyConfiguration"
)

// proxyField describes a field of KubeProxyConfiguration, or with a final ".*" all fields below.
type proxyField struct {
	key string
	// is names the setting that it becomes, if any.
	is string
	// as lists values that match what Wayleave does anyway.
	as []any
	// why explains why another value is not used.
	why string
	// zero says that 0 is a value: kube-proxy applies its default only to null.
	zero bool
	// refused says that packets would be handled differently than requested.
	refused bool
	// moot says that the field is not needed, or has no equivalent.
	moot bool
}

// proxyFields returns all fields, as of Kubernetes 1.37.
func proxyFields() []proxyField {
	const (
		at       = "changes are applied at once"
		mark     = "the masquerade mark is 0x4000, bit 14"
		all      = "not built: clients in the pod network keep their own address"
		pods     = "the podCIDRs of the nodes define which addresses are pods"
		timeouts = "not built: set it with `ipvsadm --set` on the node"
		windows  = "Windows is not supported"
		server   = "the setting apiServer, or the kubelet, has the API server"
		log      = "use the setting logLevel"
	)
	bit := []any{float64(14)}
	return []proxyField{
		{key: "apiVersion", as: []any{proxyVersion}, why: proxyVersion + " is allowed", refused: true},
		{key: "kind", as: []any{proxyKind}, why: proxyKind + " is allowed", refused: true},
		{key: "mode", is: "mode"},
		{key: "ipvs.scheduler", is: "ipvs.scheduler"},
		{key: "nodePortAddresses", is: "service.nodePortAddresses"},
		{key: "iptables.masqueradeAll", why: all, refused: true},
		{key: "nftables.masqueradeAll", why: all, refused: true},
		{key: "iptables.masqueradeBit", as: bit, why: mark, refused: true},
		{key: "nftables.masqueradeBit", as: bit, why: mark, refused: true},
		{key: "iptables.localhostNodePorts", why: "use nodePortAddresses with localhost and the node's networks",
			refused: true},
		{key: "iptables.syncPeriod", why: at, moot: true},
		{key: "iptables.minSyncPeriod", why: at, moot: true},
		{key: "nftables.syncPeriod", why: at, moot: true},
		{key: "nftables.minSyncPeriod", why: at, moot: true},
		{key: "ipvs.syncPeriod", why: at, moot: true},
		{key: "ipvs.minSyncPeriod", why: at, moot: true},
		{key: "ipvs.excludeCIDRs",
			why:     "not built: foreign virtual servers stay unless a Service has their address and port",
			refused: true},
		{key: "ipvs.strictARP", as: []any{true}},
		{key: "ipvs.tcpTimeout", why: timeouts, refused: true},
		{key: "ipvs.tcpFinTimeout", why: timeouts, refused: true},
		{key: "ipvs.udpTimeout", why: timeouts, refused: true},
		{key: "healthzBindAddress", as: []any{"0.0.0.0:10256", "[::]:10256", ":10256", "0.0.0.0", "::"},
			why: "health is served at :10256", refused: true},
		{key: "metricsBindAddress", as: []any{"127.0.0.1:10249", "127.0.0.1"}, why: "metrics are served at " +
			"127.0.0.1:10249; the setting metrics.port serves them to other machines"},
		{key: "bindAddress", as: []any{"0.0.0.0", "::"}, why: "the node's addresses are those of its Node object",
			moot: true},
		{key: "hostnameOverride", why: "the DaemonSet sets the name of the node", moot: true},
		{key: "detectLocalMode", as: []any{"ClusterCIDR", "NodeCIDR"}, why: pods},
		{key: "detectLocal.bridgeInterface", why: pods},
		{key: "detectLocal.interfaceNamePrefix", why: pods},
		{key: "clusterCIDR", why: pods, moot: true},
		{key: "conntrack.maxPerCore", is: "service.conntrack.maxPerCore", zero: true},
		{key: "conntrack.min", is: "service.conntrack.min", zero: true},
		{key: "conntrack.tcpEstablishedTimeout", is: "service.conntrack.tcpEstablishedTimeout", zero: true},
		{key: "conntrack.tcpCloseWaitTimeout", is: "service.conntrack.tcpCloseWaitTimeout", zero: true},
		{key: "conntrack.tcpBeLiberal", is: "service.conntrack.tcpBeLiberal"},
		{key: "conntrack.udpTimeout", is: "service.conntrack.udpTimeout"},
		{key: "conntrack.udpStreamTimeout", is: "service.conntrack.udpStreamTimeout"},
		{key: "clientConnection.kubeconfig", why: server, moot: true},
		{key: "clientConnection.acceptContentTypes", why: server, moot: true},
		{key: "clientConnection.contentType", why: server, moot: true},
		{key: "clientConnection.qps", why: server, moot: true},
		{key: "clientConnection.burst", why: server, moot: true},
		{key: "logging.*", why: log},
		{key: "featureGates", why: "Wayleave has no feature gates"},
		{key: "oomScoreAdj", as: []any{float64(-999)}, why: "the DaemonSet sets priorities"},
		{key: "configSyncPeriod", why: "objects are watched", moot: true},
		{key: "portRange", why: "no ports are opened for node ports", moot: true},
		{key: "bindAddressHardFail", why: "status lists ports that another process uses"},
		{key: "enableProfiling", why: "there is no profiling"},
		{key: "showHiddenMetricsForVersion", why: "no metric is hidden", moot: true},
		{key: "winkernel.networkName", why: windows, moot: true},
		{key: "winkernel.sourceVip", why: windows, moot: true},
		{key: "winkernel.enableDSR", why: windows, moot: true},
		{key: "winkernel.rootHnsEndpointName", why: windows, moot: true},
		{key: "winkernel.forwardHealthCheckVip", why: windows, moot: true},
		{key: "windowsRunAsService", why: windows, moot: true},
	}
}

// has reports whether the field describes the key.
func (f proxyField) has(key string) bool {
	below, isGroup := strings.CutSuffix(f.key, "*")
	return f.key == key || isGroup && strings.HasPrefix(key, below)
}

// isDone reports whether the value matches what Wayleave does anyway.
func (f proxyField) isDone(v any) bool {
	return unset(v) && (!f.zero || v == nil) || slices.ContainsFunc(f.as, func(as any) bool { return as == v })
}

// kubeProxy reads a KubeProxyConfiguration. A field that Wayleave does not support is an error if packets would be
// handled differently than requested, otherwise a line of Config.Unused.
func (r *reader) kubeProxy(raw []byte) error {
	tree, err := proxyTree(raw)
	if err != nil {
		return err
	}
	proxyLeaves("", tree, func(key string, f *proxyField, v any) {
		switch {
		case f == nil:
			r.errs = append(r.errs, fmt.Errorf("settings: %s: %s: %s has no such field", proxyFile, key, proxyKind))
		case f.isDone(v):
		case f.is != "":
			r.set(f.is, value{v, proxyFile, key})
		case f.refused:
			r.errs = append(r.errs, fmt.Errorf("settings: %s: %s: found %s; %s", proxyFile, key, show(v), f.why))
		default:
			r.unused = append(r.unused, fmt.Sprintf("%s: %s: not used, %s", proxyFile, key, f.why))
		}
	})
	return nil
}

func proxyTree(raw []byte) (map[string]any, error) {
	tree := map[string]any{}
	if err := yaml.UnmarshalStrict(raw, &tree); err != nil {
		return nil, fmt.Errorf("settings: %s: not YAML: %w", proxyFile, err)
	}
	for _, key := range []string{"apiVersion", "kind"} {
		if unset(tree[key]) {
			tree[key] = "nothing" // kube-proxy refuses a file without it, too
		}
	}
	return tree, nil
}

// proxyLeaves calls emit for each field in order of keys; f is nil for one that there is not.
func proxyLeaves(prefix string, tree map[string]any, emit func(key string, f *proxyField, v any)) {
	table := proxyFields()
	for _, k := range slices.Sorted(maps.Keys(tree)) {
		key, v := prefix+k, tree[k]
		isGroup := slices.ContainsFunc(table, func(f proxyField) bool { return strings.HasPrefix(f.key, key+".") })
		sub, isMap := v.(map[string]any)
		i := slices.IndexFunc(table, func(f proxyField) bool { return f.has(key) })
		switch {
		case isGroup && isMap, i >= 0 && isMap && strings.HasSuffix(table[i].key, ".*"):
			proxyLeaves(key+".", sub, emit)
		case i >= 0:
			emit(key, &table[i], v)
		case isGroup && v == nil:
		default:
			emit(key, nil, v)
		}
	}
}

// unset says that a value is what kubeadm writes for "kube-proxy's default".
func unset(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case float64:
		return v == 0
	case string:
		return v == "" || v == "0" || v == "0s"
	case []any:
		return len(v) == 0
	case map[string]any:
		for _, sub := range v {
			if !unset(sub) {
				return false
			}
		}
		return true
	}
	return false
}
