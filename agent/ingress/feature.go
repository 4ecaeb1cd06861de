// Package ingress feeds the HTTP proxies from Ingresses in the agent, and writes what belongs to Ingress in the writer.
package ingress

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/ingress"
	"wayleave.dev/internal/handoff"
	"wayleave.dev/model"
	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/schema"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/statusserver"
)

// User is the user of the proxy container.
const User = 65533

// The ports that proxies listen on, which the Service wayleave-ingress leads to.
const (
	portHTTP  = 10080
	portHTTPS = 10443
)

const (
	// Socket is the agent's, in a folder that only the proxy container has, too, which cannot write there.
	Socket = "/pod-proxy/feed.sock"
	// MetricsSocket is likewise, for the metrics of the container.
	MetricsSocket = "/pod-proxy/metrics.sock"
	// handoverSocket is where agents of the node hand listening sockets over, in the folder agent.Dirs.Run.
	handoverSocket = "/proxy-sockets.sock"
)

// Feature is Ingress: it plans, and feeds the proxies of this pod, as owner and as standby, so that the proxies of two
// pods serve beside each other during an upgrade.
type Feature struct {
	node     *agent.Node
	settings ingress.Settings
	// Keeper opens the sockets of proxies. Prepare makes one for this node unless it is set.
	Keeper  *handoff.Keeper[schema.Socket]
	feed    *feed.Feed
	secrets *kubesource.Named
	// configMaps are those that Ingresses name.
	configMaps *kubesource.Named
	// serves says that the node is inside of ingress.nodeSelector, where that is set.
	serves atomic.Bool

	mu     sync.Mutex
	from   []netip.Addr // see sources
	known  bool         // whether secret is the cluster's
	secret []byte
	// refused are what auth-url may not ask, cluster the networks where no copies go; judged says that they are known.
	refused []netip.Addr
	cluster []netip.Prefix
	judged  bool
}

var (
	_ agent.Feature       = (*Feature)(nil)
	_ agent.Preparer      = (*Feature)(nil)
	_ agent.Runner        = (*Feature)(nil)
	_ agent.Idler         = (*Feature)(nil)
	_ agent.Reporter      = (*Feature)(nil)
	_ agent.Writer        = (*Feature)(nil)
	_ agent.NodeReporter  = (*Feature)(nil)
	_ agent.ProxyFollower = (*Feature)(nil)
	_ agent.Scraped       = (*Feature)(nil)
)

// New makes the feature of one process.
func New() *Feature { return &Feature{} }

// Name implements agent.Feature.
func (f *Feature) Name() string { return "ingress" }

// Enabled implements agent.Feature.
func (f *Feature) Enabled(cfg config.Config) bool { return cfg.Ingress.Enabled }

// Kinds implements agent.Feature.
func (f *Feature) Kinds(config.Config) agent.Kinds {
	return agent.Kinds{Watched: model.IngressKind | model.IngressClassKind}
}

// Scraped implements agent.Scraped.
func (f *Feature) Scraped() statusserver.Source {
	return statusserver.Source{Name: "proxy", Prefixes: []string{"wayleave_proxy_"}, Socket: MetricsSocket, UID: User}
}

// Prepare implements agent.Preparer.
func (f *Feature) Prepare(_ context.Context, n *agent.Node) error {
	f.node, f.settings = n, settings(n.Config)
	if f.Keeper == nil {
		f.Keeper = feed.NewKeeper(n.Run+handoverSocket, n.Log)
	}
	f.feed = feed.New(User, f.Keeper, n.Log)
	f.secrets = kubesource.NewSecrets(n.Client.Interface, n.Store, n.Log)
	f.configMaps = kubesource.NewConfigMaps(n.Client.Interface, n.Store, n.Log)
	return nil
}

// Run implements agent.Runner.
func (f *Feature) Run(*agent.Node) []agent.Part { return []agent.Part{{Name: f.Name(), Run: f.run}} }

// Idle implements agent.Idler.
func (f *Feature) Idle(*agent.Node) []agent.Part { return []agent.Part{{Name: f.Name(), Run: f.rest}} }

// ProxyAddresses implements agent.ProxyFollower.
func (f *Feature) ProxyAddresses(list []netip.Addr) { f.sources(list) }

// settings are the settings by which Ingresses are planned, by agents and the writer.
func settings(cfg config.Config) ingress.Settings {
	c := cfg.Ingress
	var global *schema.AuthURL
	if c.GlobalAuthURL != "" {
		global = &schema.AuthURL{URL: c.GlobalAuthURL, SignIn: c.GlobalAuthSignin, Headers: c.GlobalAuthResponseHeaders}
	}
	return ingress.Settings{
		GlobalAuth: global,
		AdoptNginx: c.AdoptNginx, Default: c.Default, HostsOfOneNamespace: c.HostsOfOneNamespace,
		ResponseHeaders:    c.AllowedResponseHeaders,
		DefaultCertificate: c.DefaultCertificate, ClusterDomain: cfg.ClusterDomain, AuthURLNetworks: c.AuthURLNetworks,
	}
}

// Facts implements agent.Reporter. A port that another program has is one: it is no error,
// since the Service does without.
func (f *Feature) Facts(n *agent.Node, snap model.Snapshot) []string {
	if !n.Config.Ingress.Enabled {
		return nil
	}
	if len(f.node.Config.Ingress.NodeSelector) > 0 && !f.serves.Load() {
		return []string{"this node serves no Ingresses (ingress.nodeSelector)"}
	}
	ours := 0
	for i := range snap.Ingresses() {
		if f.settings.Ours(snap, i) {
			ours++
		}
	}
	out := []string{fmt.Sprintf("%d of %d Ingresses are ours, %d Secrets and %d ConfigMaps watched, %d "+
		"proxies connected", ours, snap.Count(model.IngressKind), f.secrets.Watched(), f.configMaps.Watched(),
		f.feed.Proxies())}
	f.mu.Lock()
	refused := len(f.refused)
	f.mu.Unlock()
	out = append(out, fmt.Sprintf(
		"auth-url may not ask %d addresses of nodes, the API server and Services that lead there", refused))
	failures := f.feed.Failures()
	for _, s := range slices.SortedFunc(maps.Keys(failures),
		func(a, b schema.Socket) int { return a.Addr.Compare(b.Addr) }) {
		out = append(out, fmt.Sprintf("%s is not served: %v", s, failures[s]))
	}
	if bad := f.feed.Reports().Certificates; len(bad) > 0 {
		var list []string
		for _, key := range slices.Sorted(maps.Keys(bad)) {
			list = append(list, key+" ("+bad[key]+")")
		}
		out = append(out, "certificates that proxies cannot use: "+strings.Join(list, ", "))
	}
	return out
}
