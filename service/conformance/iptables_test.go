package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	kernel "wayleave.dev/kernel/iptables"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
	"wayleave.dev/service/iptables"
)

// iptablesMode drives the iptables mode.
type iptablesMode struct {
	Driven
	flavour kernel.Flavour
}

func (m *iptablesMode) Disturb(node *testnet.NS) {
	for _, f := range kernel.Families() {
		for _, table := range []string{"nat", "filter"} {
			// Either may fail where the mode repairs at the same moment: a chain that is listed is gone,
			// or is in use again. What was flushed is repaired all the same.
			program := fmt.Sprintf("%s-%s", f, m.flavour)
			_, _ = node.Try(program, "-t", table, "-F")
			_, _ = node.Try(program, "-t", table, "-X")
		}
	}
	m.Forget()
}

// realIptables starts the iptables mode on the kernel of a node.
func realIptables(t *testing.T, flavour kernel.Flavour) func(n *Node) Mode {
	testnet.Need(t, "iptables-nft")
	return func(n *Node) Mode {
		conn, err := kernel.NewKernel(n.NS.FD(), flavour)
		if err != nil {
			t.Fatal(err)
		}
		conn.LockFile = t.TempDir() + "/xtables.lock" // tests beside are in namespaces of their own
		track, err := conntrack.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		m := &iptablesMode{Driven{Mode: iptables.New(conn, track), Node: n.Name}, flavour}
		n.NS.Sysctl("net/ipv4/conf/all/route_localnet", "1")
		m.Mode.SetNodeFacts(localOf(n))
		return m
	}
}

func TestIptablesNFT(t *testing.T) {
	t.Parallel()
	Run(t, realIptables(t, kernel.NFT))
}

func TestIptablesLegacy(t *testing.T) {
	t.Parallel()
	Run(t, realIptables(t, kernel.Legacy))
}

// poisoned has the kernel refuse what leads to one address: the last table of a text gets a
// rule that there is not, so that those before it are changed.
type poisoned struct {
	kernel.Conn
	on      string
	refused *atomic.Int64
}

func (p poisoned) Restore(ctx context.Context, f kernel.Family, text []byte) error {
	if !bytes.Contains(text, []byte(p.on)) {
		return p.Conn.Restore(ctx, f, text)
	}
	i := bytes.LastIndex(text, []byte("COMMIT\n"))
	bad := slices.Concat(text[:i], []byte("-A KUBE-SERVICES -m conntrack --ctstate NOSUCHSTATE -j ACCEPT\n"), text[i:])
	err := p.Conn.Restore(ctx, f, bad)
	if err != nil {
		p.refused.Add(1)
	}
	return err
}

// A Service that the kernel refuses, again and again, costs no other Service a packet, not
// when it comes, when others change, when all is read anew, nor when a mode starts.
func TestARefusedServiceLosesNoPacketOfOthers(t *testing.T) {
	t.Parallel()
	for _, flavour := range []kernel.Flavour{kernel.NFT, kernel.Legacy} {
		t.Run(string(flavour), func(t *testing.T) { refusedBeside(t, flavour) })
	}
}

func refusedBeside(t *testing.T, flavour kernel.Flavour) {
	testnet.Need(t, "iptables-nft")
	var refused atomic.Int64
	var modes []*iptablesMode
	w := NewWorld(t, func(n *Node) Mode {
		conn, err := kernel.NewKernel(n.NS.FD(), flavour)
		if err != nil {
			t.Fatal(err)
		}
		conn.LockFile = t.TempDir() + "/xtables.lock"
		track, err := conntrack.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		m := &iptablesMode{Driven{Mode: iptables.New(poisoned{conn, "10.96.66.66/32", &refused}, track),
			Node: n.Name}, flavour}
		n.NS.Sysctl("net/ipv4/conf/all/route_localnet", "1")
		m.Mode.SetNodeFacts(localOf(n))
		modes = append(modes, m)
		return m
	})
	w.Meter()
	w.Set(web(), w.Pods[1], w.Pods[2])
	bad := model.Name{Namespace: "aaa", Name: "bad"}
	at := netip.MustParseAddr("10.96.66.66")
	plan := service.Plan{VIPs: []netip.Addr{at},
		Frontends: []service.FrontendPlan{{Frontend: service.Frontend{Addr: at, Protocol: model.TCP, Port: 80},
			Slots: []netip.AddrPort{netip.AddrPortFrom(w.Pods[1].IPs[0], 8080)}}}}
	named := func(err error) {
		t.Helper()
		var keys reconcile.KeyErrors[model.Name]
		if !errors.As(err, &keys) || len(keys) != 1 || keys[bad] == nil {
			t.Fatalf("the error is %v", err)
		}
	}
	live := Start(t, w, 1)
	for round := range 4 {
		for _, m := range modes {
			named(m.Mode.Apply(t.Context(), map[model.Name]service.Plan{bad: plan}, nil))
		}
		w.Set(web(), w.Pods[1+round%2], w.Pods[2]) // others change
		all := map[model.Name]service.Plan{bad: plan}
		for _, m := range modes {
			for k, p := range m.have {
				all[k] = p
			}
			named(m.Mode.Sync(t.Context(), all))
		}
		time.Sleep(200 * time.Millisecond)
	}
	live.Check("beside a refused Service")
	live.Stop()
	live.Ask()
	if n := refused.Load(); n < 16 {
		t.Errorf("only %d were refused: the test shows nothing", n)
	}
}
