package server

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/odddns"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// TestNamesOutsideOverSockets: settings come by the feed, also by TLS; the answers go
// on when the agent and the servers are dead.
func TestNamesOutsideOverSockets(t *testing.T) {
	cert, ca := dnstest.Authority(t)
	_, secure := dnstest.NewTLSServer(t, cert, -1)
	up := dnstest.NewServer(t, dnstest.Tells("192.0.2.9", 300))
	r := newRig(t)
	r.forwarding = schema.Forwarding{Upstreams: []model.Nameserver{up.Nameserver()}}
	r.forwarding.CA, r.forwarding.Cache = ca, dnstest.Limits
	r.forwarding.Stubs = map[string][]model.Nameserver{
		"corp.example.": {{Addr: secure, TLS: true, ServerName: "dns.example"}}}
	r.forwarding.Hosts = map[string][]netip.Addr{"printer.corp.example.": {dnstest.Addr("10.0.0.9")}}
	stopAgent := r.agent()
	r.server()
	for range 2 {
		for _, network := range []string{"udp", "tcp"} {
			r.expect(network, "10.7.0.1:53", "Printer.corp.example.", "NOERROR: A 10.0.0.9")
			r.expect(network, "10.7.0.1:53", "a.corp.example.", dnstest.TellsOne)
			r.expect(network, "10.7.0.1:53", "WWW.example.", "NOERROR: A 192.0.2.9")
			r.expect(network, "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
		}
		stopAgent()
		up.Stop()
	}
}

// The agent hears what a server lacks, for status; and so do metrics.
func TestLacksAreTold(t *testing.T) {
	h := odddns.Habits()[slices.IndexFunc(odddns.Habits(),
		func(h odddns.Habit) bool { return h.Name == "lower-no-tcp-formerr" })]
	_, at := dnstest.StartOdd(t, h)
	r := newRig(t)
	r.forwarding = schema.Forwarding{Upstreams: []model.Nameserver{at}, Cache: dnstest.Limits}
	r.agent()
	r.server()
	for i := range 3 {
		r.expect("udp", "10.7.0.1:53", fmt.Sprintf("n%d.odd.test.", i), "NOERROR: A 192.0.2.53")
	}
	testnet.Eventually(t, 30*time.Second, func() error {
		list := slices.Sorted(slices.Values(r.feed.Lacks()[at.String()]))
		if got := strings.Join(list, " "); got != "edns0 letters" {
			return errors.New(got)
		}
		return nil
	})
	text, err := r.get("/metrics")
	if want := fmt.Sprintf("wayleave_dns_forward_lacks{to=%q,what=\"letters\"} 1", at); err != nil ||
		!strings.Contains(text, want) {
		t.Errorf("%v: %s is not in\n%s", err, want, text)
	}
}
