package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// The only version that there is of kube-proxy's own settings.
const (
	proxyVersion = "kubeproxy.config.k8s.io/v1alpha1"
	proxyKind    = "KubeProxyConfiguration"
)

// proxyField is a field of KubeProxyConfiguration, or a group of them.
type proxyField struct {
	key string
	// is the setting of ours that it becomes, if any.
	is string
	// as are values that say what is done anyway.
	as []any
	// why another value is not used.
	why string
	// refused says that packets would go otherwise than was asked for.
	refused bool
}

func proxyFields() []proxyField {
	const (
		at       = "changes are programmed as they come"
		mark     = "the mark of what is masqueraded is 0x4000, bit 14"
		all      = "not built: clients in the pod network are seen by their own address"
		pods     = "who is a pod follows from the podCIDRs of the nodes"
		timeouts = "not built: `ipvsadm --set` on the node sets it, and stays"
		windows  = "this is Linux"
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
		{key: "iptables.localhostNodePorts", why: "say nodePortAddresses with 127.0.0.0/8 and the node's networks", refused: true},
		{key: "iptables.syncPeriod", why: at},
		{key: "iptables.minSyncPeriod", why: at},
		{key: "nftables.syncPeriod", why: at},
		{key: "nftables.minSyncPeriod", why: at},
		{key: "ipvs.syncPeriod", why: at},
		{key: "ipvs.minSyncPeriod", why: at},
		{key: "ipvs.excludeCIDRs", why: "not built: virtual servers of others are left alone where no Service has their address and port", refused: true},
		{key: "ipvs.strictARP", as: []any{true}},
		{key: "ipvs.tcpTimeout", why: timeouts, refused: true},
		{key: "ipvs.tcpFinTimeout", why: timeouts, refused: true},
		{key: "ipvs.udpTimeout", why: timeouts, refused: true},
		{key: "healthzBindAddress", as: []any{"0.0.0.0:10256", "[::]:10256", ":10256", "0.0.0.0", "::"}, why: "health is answered at :10256", refused: true},
		{key: "metricsBindAddress", as: []any{"127.0.0.1:10249", "127.0.0.1"}, why: "metrics are at 127.0.0.1:10249"},
		{key: "bindAddress", as: []any{"0.0.0.0", "::"}, why: "the node's addresses are those of its Node object"},
		{key: "hostnameOverride", why: "the DaemonSet says which node it is"},
		{key: "detectLocalMode", why: pods},
		{key: "detectLocal", why: pods},
		{key: "clusterCIDR", why: pods},
		{key: "conntrack.maxPerCore", is: "service.conntrack.maxPerCore"},
		{key: "conntrack.min", is: "service.conntrack.min"},
		{key: "conntrack.tcpEstablishedTimeout", is: "service.conntrack.tcpEstablishedTimeout"},
		{key: "conntrack.tcpCloseWaitTimeout", is: "service.conntrack.tcpCloseWaitTimeout"},
		{key: "conntrack.tcpBeLiberal", is: "service.conntrack.tcpBeLiberal"},
		{key: "conntrack.udpTimeout", is: "service.conntrack.udpTimeout"},
		{key: "conntrack.udpStreamTimeout", is: "service.conntrack.udpStreamTimeout"},
		{key: "clientConnection", why: "the API server is found as apiServer says"},
		{key: "logging", why: "logLevel is the setting"},
		{key: "featureGates", why: "Wayleave has no feature gates"},
		{key: "oomScoreAdj", why: "the DaemonSet sets priorities"},
		{key: "configSyncPeriod", why: "objects are watched"},
		{key: "portRange", why: "no ports are opened for node ports"},
		{key: "bindAddressHardFail", why: "a port that somebody else holds is named in status"},
		{key: "enableProfiling", why: "there is no profiling"},
		{key: "showHiddenMetricsForVersion", why: "no metric is hidden"},
		{key: "winkernel", why: windows},
		{key: "windowsRunAsService", why: windows},
	}
}

// kubeProxy reads a KubeProxyConfiguration. What it asks for and Wayleave does otherwise
// is an error where packets would go another way, else a line of Config.Unused.
func (r *reader) kubeProxy(raw []byte) error {
	tree := map[string]any{}
	if err := yaml.UnmarshalStrict(raw, &tree); err != nil {
		return fmt.Errorf("settings: %s: not YAML: %w", proxyFile, err)
	}
	for _, key := range []string{"apiVersion", "kind"} {
		if unset(tree[key]) {
			tree[key] = "nothing" // kube-proxy refuses a file without it, too
		}
	}
	r.proxyTree("", tree)
	return nil
}

func (r *reader) proxyTree(prefix string, tree map[string]any) {
	table := proxyFields()
	for _, k := range slices.Sorted(maps.Keys(tree)) {
		key, v := prefix+k, tree[k]
		i := slices.IndexFunc(table, func(f proxyField) bool { return f.key == key })
		sub, isMap := v.(map[string]any)
		switch {
		case i >= 0:
			r.proxyField(table[i], v)
		case isMap && slices.ContainsFunc(table, func(f proxyField) bool { return strings.HasPrefix(f.key, key+".") }):
			r.proxyTree(key+".", sub)
		case v == nil && slices.ContainsFunc(table, func(f proxyField) bool { return strings.HasPrefix(f.key, key+".") }):
		default:
			r.errs = append(r.errs, fmt.Errorf("settings: %s: %s: %s has no such field", proxyFile, key, proxyKind))
		}
	}
}

func (r *reader) proxyField(f proxyField, v any) {
	switch {
	case unset(v) || slices.ContainsFunc(f.as, func(as any) bool { return as == v }):
	case f.key == "nodePortAddresses" && onlyPrimary(v):
		// kube-proxy's word for the node's InternalIPs
	case f.is != "":
		r.set(f.is, value{v, proxyFile, f.key})
	case f.refused:
		r.errs = append(r.errs, fmt.Errorf("settings: %s: %s: found %s; %s", proxyFile, f.key, show(v), f.why))
	default:
		r.unused = append(r.unused, fmt.Sprintf("%s: %s: not used, %s", proxyFile, f.key, f.why))
	}
}

func onlyPrimary(v any) bool {
	l, ok := v.([]any)
	return ok && len(l) == 1 && l[0] == "primary"
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
