package conformance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	kernelipt "wayleave.dev/kernel/iptables"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/hostport"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
	"wayleave.dev/service/iptables"
	"wayleave.dev/service/nftables"
)

// poisonedNFT has the kernel refuse elements of one address.
type poisonedNFT struct {
	nft.Conn
	key string
}

func (p poisonedNFT) CommitAll(ctx context.Context, changes ...nft.Change) error {
	for _, c := range changes {
		for _, list := range c.Batch.Add {
			if slices.ContainsFunc(list, func(e nft.Element) bool { return strings.HasPrefix(e.Key, p.key) }) {
				return fmt.Errorf("poisoned: %w", unix.EINVAL)
			}
		}
	}
	return p.Conn.CommitAll(ctx, changes...)
}

// poison is the address that modes of this file do not get into the kernel.
const poison = "10.96.66.66"

// A flush of everything is repaired at once in every mode, although the kernel has refused
// some Service for so long that it waits half a minute between tries.
func TestAForeignFlushIsRepairedWhileAKeyFails(t *testing.T) {
	t.Parallel()
	testnet.Need(t, "nft", "iptables-nft")
	for name, build := range map[string]func(*testing.T, *Node) (service.Mode, func()){
		"nftables": func(t *testing.T, n *Node) (service.Mode, func()) {
			conn, track := kernels(t, n)
			return nftables.New(poisonedNFT{conn, nft.Pack(netip.MustParseAddr(poison))}, track),
				func() { n.NS.Run("nft", "flush", "ruleset") }
		},
		"iptables-nft": func(t *testing.T, n *Node) (service.Mode, func()) {
			return poisonedIptables(t, n,
				kernelipt.NFT)
		},
		"iptables-legacy": func(t *testing.T, n *Node) (service.Mode, func()) {
			return poisonedIptables(t, n,
				kernelipt.Legacy)
		},
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); flushWhileAKeyFails(t, build) })
	}
}

func kernels(t *testing.T, n *Node) (*nft.Kernel, *conntrack.Kernel) {
	t.Helper()
	conn, err := nft.NewKernel(n.NS.FD())
	if err != nil {
		t.Fatal(err)
	}
	track, err := conntrack.NewKernel(n.NS.FD())
	if err != nil {
		t.Fatal(err)
	}
	return conn, track
}

func poisonedIptables(t *testing.T, n *Node, flavour kernelipt.Flavour) (service.Mode, func()) {
	t.Helper()
	_, track := kernels(t, n)
	conn, err := kernelipt.NewKernel(n.NS.FD(), flavour)
	if err != nil {
		t.Fatal(err)
	}
	conn.LockFile = t.TempDir() + "/xtables.lock"
	m := &iptablesMode{Driven{Mode: iptables.New(refusing{conn}, track)}, flavour}
	return m.Mode, func() { m.Disturb(n.NS) }
}

// refusing refuses texts with the poison.
type refusing struct{ kernelipt.Conn }

func (r refusing) Restore(ctx context.Context, f kernelipt.Family, text []byte) error {
	if strings.Contains(string(text), poison+"/32") {
		return errors.New("poisoned")
	}
	return r.Conn.Restore(ctx, f, text)
}

func flushWhileAKeyFails(t *testing.T, build func(*testing.T, *Node) (service.Mode, func())) {
	w := NewWorld(t, func(*Node) Mode { return idle{} })
	n := w.Nodes[0]
	mode, flush := build(t, n)
	mode.SetNodeFacts(localOf(n))
	foreign, err := mode.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.Set(web(), w.Pods[1])
	w.Set(&model.Service{Name: model.Name{Namespace: "aaa", Name: "bad"},
		ClusterIPs: []netip.Addr{netip.MustParseAddr(poison)},
		Ports:      []model.ServicePort{{Protocol: model.TCP, Port: 80}}}, w.Pods[1])
	w.Store.MarkSynced(model.AllKinds())
	planner := &service.Planner{Options: func(model.Name) service.Options { return service.Options{Node: n.Name} }}
	health := reconcile.NewHealth(nil, nil)
	loop := &reconcile.Loop[model.Name, service.Plan]{Name: "service", Store: w.Store, Kinds: service.Kinds,
		Planner: planner,
		Equal:   service.Equal, Target: mode, Foreign: foreign, Health: health, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = loop.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	served := func() error {
		_, _, err := w.Clients()[0].Ask("tcp", vip(false))
		return err
	}
	testnet.Eventually(t, 20*time.Second, served)
	testnet.Eventually(t, 60*time.Second, func() error { // waits 12.8 s or more by now
		if s := health.State(); s.Errors < 8 || !s.Partial {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	for range 3 {
		flush()
		testnet.Eventually(t, 5*time.Second, served)
	}
}

// idle is no mode.
type idle struct{}

func (idle) Program(context.Context, model.Snapshot) error { return nil }
func (idle) Disturb(*testnet.NS)                           {}

// A pod's host port is for the node's own addresses, and takes nothing of a Service's
// address that is on the node: all are beside IPVS, and that of the cluster DNS is in every
// mode. An address that is not the node's is nobody's to map.
func TestAHostPortTakesNoServicesAddress(t *testing.T) {
	t.Parallel()
	cluster, other, away := netip.MustParseAddr("10.96.9.9"), netip.MustParseAddr("203.0.113.9"),
		netip.MustParseAddr("203.0.113.77")
	for name, build := range map[string]func(nft.Conn, conntrack.Flusher) service.Mode{
		"nftables": func(c nft.Conn, f conntrack.Flusher) service.Mode { return nftables.New(c, f) },
		"ipvs":     func(c nft.Conn, f conntrack.Flusher) service.Mode { return nftables.NewIPVSCompanion(c, f, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			w := NewWorld(t, func(*Node) Mode { return idle{} })
			n, pod := w.Nodes[0], w.Pods[0]
			conn, track := kernels(t, n)
			n.NS.Addr("lo", cluster.String()+"/32")
			linked := []netip.Addr{cluster}
			if name == "ipvs" {
				n.NS.Addr("lo", other.String()+"/32")
				linked = append(linked, other)
			}
			mode := build(conn, track)
			mode.SetNodeFacts(localOf(n))
			plan := service.Plan{VIPs: []netip.Addr{cluster}}
			for _, e := range []service.FrontendPlan{{Frontend: service.Frontend{Addr: cluster, Port: 443}},
				{Frontend: service.Frontend{Addr: other, Port: 443}, External: true},
				{Frontend: service.Frontend{Addr: other, Port: 445}, External: true, Split: true}} {
				e.Frontend.Protocol = model.TCP
				if name == "ipvs" { // there is no IPVS here, which would draw it
					e.Slots = []netip.AddrPort{netip.AddrPortFrom(w.Pods[2].IPs[0], 9)}
				}
				plan.Frontends = append(plan.Frontends, e)
			}
			if err := mode.Sync(t.Context(),
				map[model.Name]service.Plan{{Namespace: "ns", Name: "web"}: plan}); err != nil {
				t.Fatal(err)
			}
			var list []hostport.Mapping
			for _, port := range []uint16{443, 444, 445} {
				list = append(list, hostport.Mapping{HostPort: port, ContainerPort: 8080, Protocol: model.TCP})
			}
			list = append(list, hostport.Mapping{HostIP: away, HostPort: 8443, ContainerPort: 8080,
				Protocol: model.TCP})
			table := nft.Table{Family: nft.IPv4, Name: "host-ports", Sets: hostport.Sets(),
				Chains: hostport.Chains(nft.IPv4)}
			if err := conn.Commit(t.Context(), table, nft.Batch{Base: true, Add: hostport.Elements(nft.IPv4, pod.IPs,
				list)}); err != nil {
				t.Fatal(err)
			}
			from := w.Clients()[4]
			if who, _, err := from.Ask("tcp", netip.AddrPortFrom(n.Addrs[0], 443)); who != pod.Name {
				t.Fatalf("the host port is answered by %q, %v", who, err)
			}
			for _, c := range []Client{{"pod1b", w.Pods[1].NS, nil}, {"the node", n.NS, nil}} {
				for _, a := range linked {
					for _, port := range []uint16{443, 444, 445} {
						if who, _, err := c.Ask("tcp", netip.AddrPortFrom(a, port)); err == nil {
							t.Errorf("%s: %s port %d is answered by %s", c.Name, a, port, who)
						}
					}
				}
				if who, _, err := c.Ask("tcp", netip.AddrPortFrom(away, 8443)); err == nil {
					t.Errorf("%s: %s, which is not the node's, is answered by %s", c.Name, away, who)
				}
			}
		})
	}
}
