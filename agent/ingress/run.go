package ingress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
)

// servesOn says whether a node serves Ingresses: it has all labels of
// ingress.nodeSelector.
func servesOn(cfg config.Config, n *model.Node) bool {
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
func (f *Feature) run(ctx context.Context) error {
	if len(f.node.Config.Ingress.NodeSelector) == 0 {
		return f.feedProxies(ctx)
	}
	w, err := f.node.Store.Watch(model.NodeKind)
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
	return agent.All(ctx, part, func(ctx context.Context) error {
		_, err := f.nodeServes(ctx, w, &serves)
		return err
	})
}

// nodeServes waits until the node is known, and says whether it serves Ingresses. With an
// earlier answer it waits until that is wrong, which is an error.
func (f *Feature) nodeServes(ctx context.Context, w *model.Watcher, before *bool) (bool, error) {
	for {
		snap, _, err := w.Next(ctx)
		if err != nil {
			return false, err
		}
		n, ok := snap.Node(f.node.Name)
		if !ok {
			continue
		}
		serves := servesOn(f.node.Config, n)
		if before == nil {
			return serves, nil
		}
		if serves != *before {
			return serves, fmt.Errorf("ingress.nodeSelector: the labels of node %s changed, so that serving "+
				"Ingresses there is %t; the agent starts again", f.node.Name, serves)
		}
	}
}

// feedProxies feeds proxies until ctx ends.
func (f *Feature) feedProxies(ctx context.Context) error {
	l, err := agent.ListenChild(Socket)
	if err != nil {
		return err
	}
	return agent.All(ctx, f.Keeper.Serve, func(ctx context.Context) error { return f.Feed(ctx, l) })
}

// Feed feeds the proxies that connect to the listener, from the objects of the store, until ctx ends.
func (f *Feature) Feed(ctx context.Context, l *net.UnixListener) error {
	return agent.All(ctx, f.secrets.Run, f.configMaps.Run, f.names, f.plan, f.listen, f.identify, f.outward,
		func(ctx context.Context) error { return f.feed.Serve(ctx, l) })
}

// rest tells the proxy of this pod that there is nothing to do, so that it is ready where
// the feature is off. Nothing listens.
func (f *Feature) rest(ctx context.Context) error {
	err := errors.Join(f.feed.Certificates().Sync(ctx, nil), f.feed.Backends().Sync(ctx, nil),
		f.feed.Hosts().Sync(ctx, nil))
	if err != nil {
		return err
	}
	f.feed.Configure(schema.Settings{Log: f.node.Config.Log(), Drain: time.Second})
	f.feed.Listen(nil)
	l, err := agent.ListenChild(Socket)
	if err != nil {
		return err
	}
	return f.feed.Serve(ctx, l)
}

// listen has the proxies listen on the node's addresses. The ports 80 and 443 of the node stay free until the
// cluster has an Ingress of ours: a pod with hostNetwork may listen there. The Ingresses are read before the first
// list, so that a restart closes no socket.
func (f *Feature) listen(ctx context.Context) error {
	const kinds = model.NodeKind | model.IngressKind | model.IngressClassKind
	if err := f.node.Store.WaitSynced(ctx, kinds); err != nil {
		return err
	}
	w, err := f.node.Store.Watch(kinds)
	if err != nil {
		return err
	}
	defer w.Close()
	var last []schema.Socket
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
func (f *Feature) sockets(snap model.Snapshot) (list []schema.Socket, ok bool) {
	n, ok := snap.Node(f.node.Name)
	if !ok {
		return nil, false
	}
	return Sockets(n.InternalIPs, f.node.Config.Ingress.HostPorts && f.settings.AnyOurs(snap)), true
}

// Sockets are what proxies of a node with these addresses listen on.
func Sockets(addrs []netip.Addr, hostPorts bool) (out []schema.Socket) {
	for _, a := range addrs {
		out = append(out, schema.Socket{Addr: netip.AddrPortFrom(a, portHTTP)},
			schema.Socket{Addr: netip.AddrPortFrom(a, portHTTPS), TLS: true})
		if hostPorts {
			out = append(out, schema.Socket{Addr: netip.AddrPortFrom(a, 80)},
				schema.Socket{Addr: netip.AddrPortFrom(a, 443), TLS: true})
		}
	}
	return out
}
