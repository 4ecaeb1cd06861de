package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/kernel/firewall"
	kernelipt "wayleave.dev/kernel/iptables"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// doorOwner is in the comments of the rules that let packets to listeners of the node in.
const doorOwner = "listeners"

// newFirewall is the host's firewall of a namespace, in nf_tables and, where the programs are here, in iptables-legacy.
func newFirewall(nsfd int, tables *nft.Kernel, lockFile string) (firewall.Firewall, error) {
	all := firewall.All{tables}
	if kernelipt.Installed() {
		legacy, err := kernelipt.NewKernel(nsfd, kernelipt.Legacy)
		if err != nil {
			return nil, err
		}
		legacy.LockFile = lockFile
		all = append(all, kernelipt.Firewall{Kernel: legacy})
	}
	return all, nil
}

// doors is what the host's firewall must let in for listeners that take packets of the cluster alone: DNS for pods, its
// port for other nodes, and heartbeats. Each of these drops strangers by itself. Ports for clients outside are the
// administrator's to open.
func doors(snap model.Snapshot, node string, cfg config.Config, extra []netip.Addr) firewall.Pass {
	p := firewall.Pass{Owner: doorOwner, Hook: firewall.Input}
	// What is for the server of DNS on this node is not tracked, see dns.table.
	open := func(a netip.Addr, port int, untracked bool) {
		for _, proto := range []uint8{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			p.Rules = append(p.Rules, firewall.Accepted{Proto: proto, Dport: uint16(port), Dst: a})
			p.Samples = append(p.Samples, firewall.Packet{In: "any link", Is6: a.Is6(), Proto: proto,
				Dport: uint16(port), Dst: a, Untracked: untracked})
		}
	}
	me, ok := snap.Node(node)
	if cfg.DNS.Enabled {
		if svc, found := snap.Service(dnsService()); found {
			for _, a := range slices.Concat(svc.ClusterIPs, extra) {
				open(a, 53, true)
			}
		}
	}
	for _, a := range addressesOf(me, ok) {
		if cfg.DNS.Enabled {
			open(a, dns.NodePort, false)
		}
		if cfg.LoadBalancer.Enabled {
			open(a, cfg.LoadBalancer.PeerPort, false)
		}
	}
	return p
}

func addressesOf(n *model.Node, ok bool) []netip.Addr {
	if !ok {
		return nil
	}
	return n.InternalIPs
}

// forwarded is what the host's firewall must forward for Services: what is translated here to an endpoint on another
// node comes in and goes out by uplinks. It carries the mark of the service proxy until it leaves; replies are known by
// connection tracking. What goes to and from pods of this node is the pod network's.
func forwarded(cfg config.Config) firewall.Pass {
	p := firewall.Pass{Owner: doorOwner, Hook: firewall.Forward}
	if !cfg.Service.Enabled {
		return p
	}
	p.Rules = []firewall.Accepted{{Mark: service.MasqueradeMark}, {Replies: true}}
	for _, is6 := range []bool{false, true} {
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			p.Samples = append(p.Samples, firewall.Packet{In: "any link", Out: "any link", Is6: is6, Proto: proto,
				Mark: service.MasqueradeMark, Translated: true})
		}
	}
	return p
}

// doorsAgain is how often the host's firewall is looked at, beside when others change it.
const doorsAgain = 30 * time.Second

// openDoors keeps doors open.
func (a *agent) openDoors(ctx context.Context) error {
	changed, err := a.firewall.WatchOthers(ctx)
	if err != nil {
		return err
	}
	w, err := a.store.Watch(model.ServiceKind | model.NodeKind)
	if err != nil {
		return err
	}
	defer w.Close()
	var last []firewall.Accepted
	look := true
	for ctx.Err() == nil {
		snap, _, ready := w.Poll()
		p := doors(snap, a.node, a.cfg, a.nodeDNS)
		start := time.Now()
		if look || !slices.Equal(p.Rules, last) {
			found, err := a.firewall.Admit(ctx, p)
			more, fail := a.firewall.Admit(ctx, forwarded(a.cfg))
			if ctx.Err() != nil {
				break
			}
			found, err = found.Merge(more), errors.Join(err, fail)
			a.say("firewall of the host", err)
			if last = p.Rules; err == nil {
				a.tellDoors(found)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(max(200*time.Millisecond, 10*time.Since(start))):
		}
		again, cancel := context.WithTimeout(ctx, doorsAgain)
		select {
		case <-changed:
			look = true
		case <-ready.C(again):
			look = again.Err() != nil // or a Service or Node changed, most of which change no rule
		case <-again.Done():
			look = true
		}
		cancel()
	}
	return ctx.Err()
}

func (a *agent) tellDoors(found firewall.Found) {
	feature, line := "dns", ""
	switch {
	case a.cfg.DNS.Enabled:
	case a.cfg.Service.Enabled:
		feature = "service"
	default:
		feature = "loadbalancer"
	}
	if len(found.Accepted) > 0 {
		line = "the host's firewall drops packets of Services or to listeners of Wayleave; they are accepted " +
			"in its chains " + strings.Join(found.Accepted, ", ")
	}
	a.fact(feature+" firewall", line)
	var problems []model.Problem
	for _, d := range found.Drops {
		problems = append(problems, model.Problem{Kind: "Node", Object: model.Name{Name: a.node}, Field: "firewall",
			Reason: fmt.Sprintf("the host's rule %q drops packets of Services, or to DNS or heartbeats of this "+
				"node; let the networks of pods and nodes pass in it (firewalld: firewall-cmd --permanent "+
				"--zone=trusted --add-source=CIDR)", d)})
	}
	a.problems.Set("firewall", "listeners", problems)
}
