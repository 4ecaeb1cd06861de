package cluster

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"wayleave.dev/lab/build"
	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/images"
	"wayleave.dev/lab/node"
	"wayleave.dev/lab/pki"
	"wayleave.dev/lab/process"
)

// plugins are the reference plugins of the upstream network.
var plugins = []string{"main/bridge", "meta/portmap", "ipam/host-local"}

// upstreamParts are the parts that only the upstream network needs.
type upstreamParts struct {
	plugins *build.CNIPlugins
}

func (u *up) buildUpstream(ctx context.Context) error {
	parts, err := u.cache.CNIPlugins(ctx, plugins...)
	if err != nil {
		return err
	}
	u.upstream = &upstreamParts{plugins: parts}
	archive, err := images.CoreDNS(ctx, u.cache)
	if err != nil {
		return err
	}
	u.images = append(u.images, archive)
	return nil
}

// prepareUpstream gives each node the plugins and a kube-proxy, as a program of the node.
func (u *up) prepareUpstream() error {
	if err := u.ca.Issue(pki.Request{Name: "kube-proxy", CommonName: "system:kube-proxy"}); err != nil {
		return err
	}
	for i := range u.nodes {
		if err := u.prepareUpstreamNode(&u.nodes[i]); err != nil {
			return fmt.Errorf("lab: %s: %w", u.nodes[i].Machine.Name, err)
		}
	}
	return nil
}

func (u *up) prepareUpstreamNode(n *node.Config) error {
	if err := os.MkdirAll(n.Kubernetes(), 0o755); err != nil {
		return err
	}
	if err := os.CopyFS(n.CNIBin(), os.DirFS(u.upstream.plugins.Dir)); err != nil {
		return err
	}
	if err := u.ca.Kubeconfig(filepath.Join(n.Kubernetes(), "kube-proxy.conf"), n.Server, "kube-proxy"); err != nil {
		return err
	}
	config := proxyConfig(u.ProxyMode, n.Machine.Name, u.podRanges())
	if err := os.WriteFile(filepath.Join(n.Kubernetes(), "kube-proxy.yaml"), []byte(config), 0o644); err != nil {
		return err
	}
	n.Extra = append(n.Extra, process.Service{Name: n.Machine.Name + "-kube-proxy", Program: u.programs.Kube,
		Args: []string{"/usr/bin/kube-proxy", "--config=/etc/kubernetes/kube-proxy.yaml"}})
	return nil
}

func (u *up) podRanges() []netip.Prefix {
	ranges := []netip.Prefix{fabric.PodsV4}
	if u.DualStack {
		ranges = append(ranges, fabric.PodsV6)
	}
	return ranges
}

// proxyConfig renders kube-proxy's configuration. It must not change the size of the connection tracking table, which
// is the machine's.
func proxyConfig(mode, name string, pods []netip.Prefix) string {
	var ranges []string
	for _, p := range pods {
		ranges = append(ranges, p.String())
	}
	return `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ` + mode + `
hostnameOverride: ` + name + `
clientConnection: {kubeconfig: /etc/kubernetes/kube-proxy.conf}
clusterCIDR: "` + strings.Join(ranges, ",") + `"
conntrack: {maxPerCore: 0, min: 0}
`
}

// connect creates the pod network: a bridge on each node by the reference plugin, a route to each other node, and
// masquerading of packets that leave the pods' ranges. The plugin's own masquerading would hide pods from those of
// other nodes.
func (u *up) connect(nodes map[string]apiNode) error {
	for i, m := range u.plan.Nodes {
		for _, other := range u.plan.Nodes {
			if other.Name == m.Name {
				continue
			}
			for _, prefix := range nodes[other.Name].Spec.PodCIDRs {
				if err := fabric.Route(m.Namespace, prefix, other.Address(prefix)); err != nil {
					return err
				}
			}
		}
		if err := u.masquerade(m); err != nil {
			return err
		}
		list, err := bridgeConfig(nodes[m.Name].Spec.PodCIDRs)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(u.nodes[i].CNIConf(), "10-bridge.conflist"), list, 0o644); err != nil {
			return fmt.Errorf("lab: %s: %w", m.Name, err)
		}
	}
	return nil
}

func (u *up) masquerade(m fabric.Machine) error {
	cmd, err := u.inMachine(context.Background(), m.Name, "nft", "-f", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = strings.NewReader(masqueradeRules(u.podRanges()))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("lab: %s: masquerading: %w\n%s", m.Name, err, out)
	}
	return nil
}

func masqueradeRules(pods []netip.Prefix) string {
	var rules strings.Builder
	rules.WriteString("table inet lab {\n  chain leave {\n    type nat hook postrouting priority srcnat;\n")
	for _, p := range pods {
		family := "ip"
		if p.Addr().Is6() {
			family = "ip6"
		}
		fmt.Fprintf(&rules, "    %[1]s saddr %[2]s %[1]s daddr != %[2]s masquerade\n", family, p)
	}
	rules.WriteString("  }\n}\n")
	return rules.String()
}

// bridgeConfig renders the plugins' configuration for a node.
func bridgeConfig(pods []netip.Prefix) ([]byte, error) {
	type object = map[string]any
	var ranges, routes []any
	for _, p := range pods {
		ranges = append(ranges, []any{object{"subnet": p.String()}})
		route := "0.0.0.0/0"
		if p.Addr().Is6() {
			route = "::/0"
		}
		routes = append(routes, object{"dst": route})
	}
	data, err := json.MarshalIndent(object{
		"cniVersion": "1.0.0", "name": "lab",
		"plugins": []any{
			object{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false,
				"ipam": object{"type": "host-local", "ranges": ranges, "routes": routes}},
			object{"type": "portmap", "capabilities": object{"portMappings": true}, "snat": true,
				"backend": "nftables"},
		},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("lab: bridge plugin: %w", err)
	}
	return data, nil
}

//go:embed coredns.yaml
var coreDNSTemplate string

func coreDNSManifest() string {
	return strings.NewReplacer("$IMAGE", images.CoreDNSImage, "$ADDRESS", fabric.ClusterDNS.String()).Replace(
		coreDNSTemplate)
}
