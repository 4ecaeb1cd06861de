package server

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"

	agent "wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
)

// An agent that starts while the API server is away knows nothing: a server that starts
// then, too, has its names from its last snapshot, and its sockets from where the earlier
// agent served. Once the agent knows better, that counts.
func TestSocketsAreRememberedForAStartWithoutTheAPIServer(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(t.TempDir(), "state", "dns-place")
	stopAgent := r.agent()
	stopServer := r.server()
	r.expect("udp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
	p := &agent.Placement{Service: dnstest.Name("kube-system/kube-dns"), Feed: &agent.Feed{}, Net: &link.Fake{},
		Bypass: agent.NFTables{Conn: nft.NewFake()},
		File:   file, Forwarding: func([]netip.Addr) schema.Forwarding { return schema.Forwarding{} }}
	place := agent.Place{VIPs: []netip.Addr{netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("fd07::1")},
		Nodes: []netip.Addr{netip.MustParseAddr("10.7.0.1")}}
	if err := p.Sync(t.Context(), map[model.Name]agent.Place{p.Service: place}); err != nil {
		t.Fatal(err)
	}
	stopAgent()
	stopServer()

	r.before = file
	r.agentThat(false)
	r.server()
	for _, to := range []string{"10.7.0.1:53", "[fd07::1]:53", fmt.Sprintf("10.7.0.1:%d", agent.NodePort)} {
		for _, network := range []string{"udp", "tcp"} {
			r.expect(network, to, backendName, "NOERROR: A 10.96.100.50")
		}
	}
	r.configure(r.feed)
	testnet.Eventually(t, 10*time.Second, func() error {
		if _, err := r.ask("udp", "", fmt.Sprintf("10.7.0.1:%d", agent.NodePort), backendName, dns.TypeA); err == nil {
			return fmt.Errorf("a socket that is no longer wanted answers")
		}
		return nil
	})
	r.expect("udp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
}
