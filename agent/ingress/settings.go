package ingress

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/netip"
	"slices"

	"wayleave.dev/config"
	"wayleave.dev/ingress"
	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/writeback"
)

// identify tells proxies the secret of affinity cookies, and with it the settings: a proxy
// that served before would give out cookies that no other knows.
func (f *Feature) identify(ctx context.Context) error {
	secret, err := cookieSecret(ctx, f.node.Store)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	f.node.SetCondition("affinity cookies", err) // they work all the same
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
func (f *Feature) sources(list []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if list != nil {
		f.from = list
	}
	f.configure()
}

// configure tells proxies the settings once all of them are known; f.mu is held.
func (f *Feature) configure() {
	if !f.known || !f.judged {
		return // see identify and outward
	}
	c := f.node.Config.Ingress
	f.feed.Configure(schema.Settings{Log: f.node.Config.Log(), Trusted: c.TrustedProxies, Sources: f.from,
		Secret: f.secret, AskFromNode: !f.node.Config.PodNetwork.Enabled, AskAllowed: c.AuthURLNetworks,
		AskRefused: f.refused,
		Cluster:    f.cluster, ProxyProtocol: c.ProxyProtocol, AccessLog: c.AccessLog, Drain: c.Drain,
		Connect: c.Connect, Send: c.Send, Read: c.Read, ConnectionsPerClient: c.ConnectionsPerClient,
		RequestHead:  schema.HeadLimits{Bytes: c.RequestHeadBytes, Fields: c.RequestFields},
		ResponseHead: schema.HeadLimits{Bytes: c.ResponseHeadBytes, Fields: c.ResponseFields},
		Server:       serverField(c.ServerHeader), HideServer: c.ServerHeader == config.NoServerHeader,
		EndpointTLS: schema.TLSDefaults{MinVersion: c.EndpointTLSMinVersion, RSAKeyExchange: c.EndpointTLSRSA}})
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
func (f *Feature) outward(ctx context.Context) error {
	if err := f.node.Store.WaitSynced(ctx, ingress.OutwardKinds); err != nil {
		return err
	}
	w, err := f.node.Store.Watch(ingress.OutwardKinds)
	if err != nil {
		return err
	}
	defer w.Close()
	o := ingress.Outward{ProxyService: model.Name{Namespace: writeback.DNSNamespace, Name: writeback.IngressService}}
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
func (f *Feature) judge(snap model.Snapshot, refused []netip.Addr, cluster []netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	same := f.judged && slices.Equal(f.refused, refused) && slices.Equal(f.cluster, cluster)
	f.refused, f.cluster, f.judged = refused, cluster, true
	if n, ok := snap.Node(f.node.Name); ok && f.from == nil && f.node.Config.PodNetwork.Enabled {
		if f.from = n.ProxyAddrs(); f.from != nil {
			same = false
		}
	}
	if !same {
		f.configure()
	}
}
