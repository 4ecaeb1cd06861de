package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	agent "wayleave.dev/dns"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// Pods that another CNI plugin gave addresses outside of all podCIDRs are answered: those that the API names, and those
// behind links of this node's pods; also while the agent is away, and by a server that starts then. Strangers are not,
// nor is an address whose pod is gone.
func TestPodsOutsideOfPodCIDRsAreAnswered(t *testing.T) {
	r := newRig(t)
	for _, a := range []string{"10.7.0.67/24", "10.7.0.80/24", "fd08::66/64", "fd08::80/64"} {
		r.client.Addr("eth0", a)
	}
	r.node.Addr("eth0", "fd08::1/64")
	stopAgent := r.agent()
	guests := func() *agent.Guests { return &agent.Guests{Feed: r.feed, Log: slog.New(slog.DiscardHandler)} }
	follow := func(g *agent.Guests) {
		loop := &reconcile.Loop[model.Name, []netip.Addr]{Name: "guests", Store: r.store, Kinds: model.PodKind,
			Planner: reconcile.PlannerOf(agent.CallerKeys, agent.PlanGuest),
			Equal:   func(a, b []netip.Addr) bool { return fmt.Sprint(a) == fmt.Sprint(b) }, Target: g,
			Health: reconcile.NewHealth(nil, nil), Log: g.Log}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = loop.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	r.store.MarkSynced(model.PodKind)
	g := guests()
	follow(g)
	stopServer := r.server()
	r.expect("udp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
	try := func(from string) error {
		for _, network := range []string{"udp", "tcp"} {
			server := "10.7.0.1:53"
			if netip.MustParseAddr(from).Is6() {
				server = "[fd07::1]:53"
			}
			if m, err := r.ask(network, netip.AddrPortFrom(netip.MustParseAddr(from), 0).String(), server, backendName,
				dns.TypeA); err != nil {
				return fmt.Errorf("%s by %s: %w", from, network, err)
			} else if got := dnstest.Text(m); got != "NOERROR: A 10.96.100.50" {
				return fmt.Errorf("%s by %s: %s", from, network, got)
			}
		}
		return nil
	}
	answered := func(list ...string) {
		t.Helper()
		for _, from := range list {
			testnet.Eventually(t, 10*time.Second, func() error { return try(from) })
		}
	}
	refused := func(list ...string) {
		t.Helper()
		for _, from := range list {
			if err := try(from); err == nil {
				t.Errorf("the stranger %s was answered", from)
			}
		}
	}
	refused("10.7.0.66", "fd08::66")
	put := func(pods ...*model.Pod) {
		t.Helper()
		if err := r.store.Write(func(w *model.Writer) {
			for _, p := range pods {
				w.PutPod(p)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	put(&model.Pod{Name: dnstest.Name("bugs/calico-like"), Node: "other", IPs: []netip.Addr{dnstest.Addr("10.7.0.66"),
		dnstest.Addr("fd08::66")}},
		&model.Pod{Name: dnstest.Name("bugs/host"), Node: "other", HostNetwork: true,
			IPs: []netip.Addr{dnstest.Addr("10.7.0.80")}})
	answered("10.7.0.66", "fd08::66")
	refused("10.7.0.67", "10.7.0.80", "fd08::80")
	g.SetRouted([]netip.Prefix{netip.MustParsePrefix("10.7.0.67/32"), netip.MustParsePrefix("fd08::80/124")})
	answered("10.7.0.67", "fd08::80", "10.7.0.66")
	refused("10.7.0.80")

	stopAgent()
	answered("10.7.0.66", "10.7.0.67", "fd08::66")
	stopServer()
	r.before = "" // the sockets are an agent's to give: one that knows nothing else yet
	stopAgent = r.agentThat(false)
	r.feed.Listen(r.sockets())
	r.server()
	answered("10.7.0.66", "10.7.0.67", "fd08::66")
	refused("10.7.0.80", "fd08::99")

	stopAgent()
	r.agent()
	follow(guests())
	if err := r.store.Write(func(w *model.Writer) {
		w.Delete(model.PodKind,
			dnstest.Name("bugs/calico-like"))
	}); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		for _, from := range []string{"10.7.0.66", "10.7.0.67", "fd08::66"} {
			if err := try(from); err == nil {
				return fmt.Errorf("%s is no pod's and is answered", from)
			}
		}
		return nil
	})
}
