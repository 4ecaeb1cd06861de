package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wayleave.dev/config"
	"wayleave.dev/ingress"
	"wayleave.dev/internal/handoff"
	"wayleave.dev/model"
	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
	"wayleave.dev/reconcile"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/writeback"
)

// proxyUser is the user of the proxy container.
const proxyUser = 65533

// The ports that proxies listen on, which the Service wayleave-ingress leads to.
const (
	proxyHTTP  = 10080
	proxyHTTPS = 10443
)

// proxySockets is where agents of the node hand listening sockets over.
const proxySockets = runDir + "/proxy-sockets.sock"

// ingressFeed is the feature at work: it plans, and feeds the proxies of this pod, as owner
// and as standby, so that the proxies of two pods serve beside each other during an upgrade.
type ingressFeed struct {
	a        *agent
	settings ingress.Settings
	keeper   *handoff.Keeper[feed.Socket]
	feed     *feed.Feed
	secrets  *kubesource.Secrets
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

func newIngressFeed(a *agent) *ingressFeed {
	f := &ingressFeed{a: a, settings: ingressSettings(a.cfg)}
	f.keeper = feed.NewKeeper(proxySockets, a.log)
	f.feed = feed.New(proxyUser, f.keeper, a.log)
	f.secrets = &kubesource.Secrets{Client: a.client.Interface, Store: a.store, Log: a.log}
	return f
}

// ingressSettings are the settings by which Ingresses are planned, by agents and the writer.
func ingressSettings(cfg config.Config) ingress.Settings {
	c := cfg.Ingress
	var global *table.AuthURL
	if c.GlobalAuthURL != "" {
		global = &table.AuthURL{URL: c.GlobalAuthURL, SignIn: c.GlobalAuthSignin, Headers: c.GlobalAuthResponseHeaders}
	}
	return ingress.Settings{
		GlobalAuth: global,
		AdoptNginx: c.AdoptNginx, Default: c.Default, HostsOfOneNamespace: c.HostsOfOneNamespace,
		DefaultCertificate: c.DefaultCertificate, ClusterDomain: cfg.ClusterDomain, AuthURLNetworks: c.AuthURLNetworks,
	}
}

// servesIngress says whether a node serves Ingresses: it has all labels of
// ingress.nodeSelector.
func servesIngress(cfg config.Config, n *model.Node) bool {
	for k, v := range cfg.Ingress.NodeSelector {
		if have, ok := n.Labels[k]; !ok || have != v {
			return false
		}
	}
	return cfg.Ingress.Enabled
}

// run feeds proxies until ctx ends, where the node serves Ingresses by ingress.nodeSelector;
// elsewhere it reads no Secret and nothing listens. A change of the node's labels ends it
// with an error, and the agent starts again.
func (f *ingressFeed) run(ctx context.Context) error {
	if len(f.a.cfg.Ingress.NodeSelector) == 0 {
		return f.feedProxies(ctx)
	}
	w, err := f.a.store.Watch(model.NodeKind)
	if err != nil {
		return err
	}
	defer w.Close()
	serves, err := f.nodeServes(ctx, w, nil)
	if err != nil {
		return err
	}
	part := f.rest
	if serves {
		part = f.feedProxies
	}
	f.serves.Store(serves)
	return all(ctx, part, func(ctx context.Context) error {
		_, err := f.nodeServes(ctx, w, &serves)
		return err
	})
}

// nodeServes waits until the node is known, and says whether it serves Ingresses. With an
// earlier answer it waits until that is wrong, which is an error.
func (f *ingressFeed) nodeServes(ctx context.Context, w *model.Watcher, before *bool) (bool, error) {
	for {
		snap, _, err := w.Next(ctx)
		if err != nil {
			return false, err
		}
		n, ok := snap.Node(f.a.node)
		if !ok {
			continue
		}
		serves := servesIngress(f.a.cfg, n)
		if before == nil {
			return serves, nil
		}
		if serves != *before {
			return serves, fmt.Errorf("ingress.nodeSelector: the labels of node %s changed, so that serving "+
				"Ingresses there is %t; the agent starts again", f.a.node, serves)
		}
	}
}

// feedProxies feeds proxies until ctx ends.
func (f *ingressFeed) feedProxies(ctx context.Context) error {
	return all(ctx, f.keeper.Serve, f.serve, f.secrets.Run, f.names, f.plan, f.listen, f.identify, f.outward)
}

// identify tells proxies the secret of affinity cookies, and with it the settings: a proxy
// that served before would give out cookies that no other knows.
func (f *ingressFeed) identify(ctx context.Context) error {
	secret, err := cookieSecret(ctx, f.a.store)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	f.a.say("affinity cookies", err) // they work all the same
	f.mu.Lock()
	f.known, f.secret = true, secret
	f.mu.Unlock()
	f.sources(nil)
	<-ctx.Done()
	return ctx.Err()
}

// cookieSecret is the same on all nodes, after every restart and of every version: it
// follows from the UID of the namespace kube-system, which clients outside do not know.
// It keeps them from finding pods' addresses by trying all; it opens no door.
func cookieSecret(ctx context.Context, store *model.Store) ([]byte, error) {
	if err := store.WaitSynced(ctx, model.NamespaceKind); err != nil {
		return nil, err
	}
	n, ok := store.Snapshot().Namespace(writeback.DNSNamespace)
	if !ok || n.UID == "" {
		return nil,
			errors.New(
				"the namespace kube-system has no UID, from which a secret would follow: they do not hide addresses")
	}
	sum := sha256.Sum256([]byte("wayleave affinity cookies of cluster " + n.UID))
	return sum[:], nil
}

// sources tells proxies the addresses that they are to connect to endpoints from; the
// last that are known when list is nil.
func (f *ingressFeed) sources(list []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if list != nil {
		f.from = list
	}
	f.configure()
}

// configure tells proxies the settings once all of them are known; f.mu is held.
func (f *ingressFeed) configure() {
	if !f.known || !f.judged {
		return // see identify and outward
	}
	c := f.a.cfg.Ingress
	f.feed.Configure(feed.Settings{Trusted: c.TrustedProxies, Sources: f.from, Secret: f.secret,
		AskFromNode: !f.a.cfg.PodNetwork.Enabled, AskAllowed: c.AuthURLNetworks, AskRefused: f.refused,
		Cluster: f.cluster, ProxyProtocol: c.ProxyProtocol, AccessLog: c.AccessLog, Drain: c.Drain,
		Connect: c.Connect, Send: c.Send, Read: c.Read, ConnectionsPerClient: c.ConnectionsPerClient,
		RequestHead:  h1.HeadLimits{Bytes: c.RequestHeadBytes, Fields: c.RequestFields},
		ResponseHead: h1.HeadLimits{Bytes: c.ResponseHeadBytes, Fields: c.ResponseFields},
		Server:       serverField(c.ServerHeader), HideServer: c.ServerHeader == config.NoServerHeader,
		EndpointTLS: upstream.TLS{MinVersion: c.EndpointTLSMinVersion, RSAKeyExchange: c.EndpointTLSRSA}})
}

// serverField is the field Server that the setting asks for; empty for none of the proxy's own.
func serverField(setting string) string {
	if setting == config.NoServerHeader {
		return ""
	}
	return setting
}

// outward tells proxies what auth-url may not ask. It begins when all of that is known: with
// a part, an Ingress's author could have a node asked.
func (f *ingressFeed) outward(ctx context.Context) error {
	if err := f.a.store.WaitSynced(ctx, ingress.OutwardKinds); err != nil {
		return err
	}
	w, err := f.a.store.Watch(ingress.OutwardKinds)
	if err != nil {
		return err
	}
	defer w.Close()
	o := ingress.Outward{Door: model.Name{Namespace: writeback.DNSNamespace, Name: writeback.IngressService}}
	for {
		snap, c, err := w.Next(ctx)
		if err != nil {
			return err
		}
		f.judge(snap, o.Refused(snap, c), o.Cluster())
	}
}

// judge puts the addresses into force, and with them the proxy's own while the owner of the
// node has not told it: that of an upgrade's other agent is in place.
func (f *ingressFeed) judge(snap model.Snapshot, refused []netip.Addr, cluster []netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	same := f.judged && slices.Equal(f.refused, refused) && slices.Equal(f.cluster, cluster)
	f.refused, f.cluster, f.judged = refused, cluster, true
	if n, ok := snap.Node(f.a.node); ok && f.from == nil && f.a.cfg.PodNetwork.Enabled {
		if f.from = n.ProxyAddrs(); f.from != nil {
			same = false
		}
	}
	if !same {
		f.configure()
	}
}

// rest tells the proxy of this pod that there is nothing to do, so that it is ready where
// the feature is off. Nothing listens.
func (f *ingressFeed) rest(ctx context.Context) error {
	err := errors.Join(f.feed.Certificates().Sync(ctx, nil), f.feed.Backends().Sync(ctx, nil),
		f.feed.Hosts().Sync(ctx, nil))
	if err != nil {
		return err
	}
	f.feed.Configure(feed.Settings{Drain: time.Second})
	f.feed.Listen(nil)
	return f.serve(ctx)
}

// serve feeds the proxies that connect.
func (f *ingressFeed) serve(ctx context.Context) error {
	l, err := listenChild(proxySocket)
	if err != nil {
		return err
	}
	return f.feed.Serve(ctx, l)
}

// names has the Secrets watched that Ingresses of ours name, and no others.
func (f *ingressFeed) names(ctx context.Context) error {
	return secretLoop(f.a.store, f.settings, f.secrets, f.a).Run(ctx)
}

func secretLoop(store *model.Store, s ingress.Settings, target reconcile.Target[model.Name, []model.Name],
	a *agent) *reconcile.Loop[model.Name, []model.Name] {
	first := true
	return &reconcile.Loop[model.Name, []model.Name]{
		Name: "ingress secrets", Store: store, Kinds: model.IngressKind | model.IngressClassKind, Target: target,
		Health: a.health("ingress secrets"), Log: a.log,
		Keys: func(snap model.Snapshot, c model.Changes) []model.Name {
			keys := slices.Collect(maps.Keys(c.Ingresses))
			if len(c.Classes) > 0 {
				keys = keys[:0]
				for n := range c.Ingresses {
					keys = append(keys, n) // those that are gone, too
				}
				for i := range snap.Ingresses() {
					keys = append(keys, i.Name)
				}
			}
			if first {
				first = false
				keys = append(keys, model.Name{}) // the settings
			}
			return keys
		},
		Plan: func(snap model.Snapshot, n model.Name) ([]model.Name, bool, []model.Problem) {
			if n == (model.Name{}) {
				return []model.Name{s.DefaultCertificate}, s.DefaultCertificate != model.Name{}, nil
			}
			i, ok := snap.Ingress(n)
			if !ok || !s.Ours(snap, i) {
				return nil, false, nil
			}
			names := ingress.SecretsOf(i)
			return names, len(names) > 0, nil
		},
		Equal: slices.Equal[[]model.Name],
	}
}

// plan plans hosts, backends and certificates.
func (f *ingressFeed) plan(ctx context.Context) error {
	planner := ingress.NewPlanner(f.settings)
	planner.Waits = true // for f.secrets
	loop := &reconcile.Loop[ingress.Key, ingress.Plan]{
		Name: "ingress", Store: f.a.store, Kinds: ingress.Kinds, Keys: planner.Keys, Plan: planner.Plan,
		Equal:  ingress.Equal,
		Target: ingress.Target{Hosts: f.feed.Hosts(), Backends: f.feed.Backends(), Certificates: f.feed.Certificates()},
		Wake:   planner.Wake(), Health: f.a.health("ingress"), Log: f.a.log,
		Report: func(key string, problems []model.Problem) { f.a.problems.Set("ingress", key, problems) },
	}
	return all(ctx, loop.Run, planner.Run)
}

// listen has the proxies listen on the node's addresses. The ports 80 and 443 of the node stay free until the
// cluster has an Ingress of ours: a pod with hostNetwork may listen there. The Ingresses are read before the first
// list, so that a restart closes no socket.
func (f *ingressFeed) listen(ctx context.Context) error {
	const kinds = model.NodeKind | model.IngressKind | model.IngressClassKind
	if err := f.a.store.WaitSynced(ctx, kinds); err != nil {
		return err
	}
	w, err := f.a.store.Watch(kinds)
	if err != nil {
		return err
	}
	defer w.Close()
	var last []feed.Socket
	for {
		snap, _, err := w.Next(ctx)
		if err != nil {
			return err
		}
		list, ok := f.sockets(snap)
		if !ok {
			continue // the proxies go on with the addresses of before
		}
		if !slices.Equal(list, last) {
			f.feed.Listen(list)
			last = list
		}
	}
}

// sockets are what the proxies of this node listen on; ok is false while the node is not known.
func (f *ingressFeed) sockets(snap model.Snapshot) (list []feed.Socket, ok bool) {
	n, ok := snap.Node(f.a.node)
	if !ok {
		return nil, false
	}
	return socketsOf(n.InternalIPs, f.a.cfg.Ingress.HostPorts && f.settings.AnyOurs(snap)), true
}

// socketsOf are what proxies of a node with these addresses listen on.
func socketsOf(addrs []netip.Addr, hostPorts bool) (out []feed.Socket) {
	for _, a := range addrs {
		out = append(out, feed.Socket{Addr: netip.AddrPortFrom(a, proxyHTTP)},
			feed.Socket{Addr: netip.AddrPortFrom(a, proxyHTTPS), TLS: true})
		if hostPorts {
			out = append(out, feed.Socket{Addr: netip.AddrPortFrom(a, 80)},
				feed.Socket{Addr: netip.AddrPortFrom(a, 443), TLS: true})
		}
	}
	return out
}

// facts are lines for status. A port that another program has is one: it is no error,
// since the Service does without.
func (f *ingressFeed) facts(snap model.Snapshot) []string {
	if len(f.a.cfg.Ingress.NodeSelector) > 0 && !f.serves.Load() {
		return []string{"this node serves no Ingresses (ingress.nodeSelector)"}
	}
	ours := 0
	for i := range snap.Ingresses() {
		if f.settings.Ours(snap, i) {
			ours++
		}
	}
	out := []string{fmt.Sprintf("%d of %d Ingresses are ours, %d Secrets watched, %d proxies connected", ours,
		snap.Count(model.IngressKind), f.secrets.Watched(), f.feed.Proxies())}
	f.mu.Lock()
	refused := len(f.refused)
	f.mu.Unlock()
	out = append(out, fmt.Sprintf(
		"auth-url may not ask %d addresses of nodes, the API server and Services that lead there", refused))
	failures := f.feed.Failures()
	for _, s := range slices.SortedFunc(maps.Keys(failures),
		func(a, b feed.Socket) int { return a.Addr.Compare(b.Addr) }) {
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
