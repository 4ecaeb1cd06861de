package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/testnet"
)

// Bursts go out and come back in batches; each query has its own answer, whatever way
// it took, and an odd one among them stops no other.
func TestBurstsAreAnswered(t *testing.T) {
	s, client := loopback(t)
	defer s.Keep(nil)
	names := []string{backendName, "nobody.default.svc.cluster.local.", "external-db.default.svc.cluster.local.",
		"dns-version.cluster.local.", "BACKEND.default.svc.cluster.local."}
	const rounds, burst = 20, 100
	for range rounds {
		want := map[uint16]string{}
		for i := range burst {
			q := new(dns.Msg).SetQuestion(names[i%len(names)], dns.TypeA)
			q.Id = uint16(i)
			raw, err := q.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if i%7 == 0 { // a reply, and half a query: neither has an answer, or one that is FORMERR
				raw[2] |= 0x80
			} else {
				want[q.Id] = q.Question[0].Name
			}
			if _, err := client.Write(raw); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 4096)
		for len(want) > 0 {
			if err := client.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, err := client.Read(buf)
			if err != nil {
				t.Fatalf("%d queries have no answer: %v", len(want), err)
			}
			m := new(dns.Msg)
			if err := m.Unpack(buf[:n]); err != nil {
				t.Fatal(err)
			}
			if !m.Response || m.Question[0].Name != want[m.Id] {
				t.Fatalf("%d asked %q and got %v", m.Id, want[m.Id], m)
			}
			delete(want, m.Id)
		}
	}
}

// With upstreams that answer nothing and as many queries for them as there may be,
// names of the cluster are answered as ever; more for the upstreams are told so.
func TestADeadUpstreamStopsNoClusterName(t *testing.T) {
	s, client := loopback(t)
	release := make(chan struct{})
	s.resolver.Forward = func(context.Context, *dns.Msg) (*dns.Msg, error) {
		<-release
		return nil, errors.New("dead")
	}
	defer s.Keep(nil)
	defer close(release)
	others := addrsFrom("10.9.0.1", maxWorkers-1)
	for _, a := range others { // all but one are taken
		if !s.work.take(a) {
			t.Fatal("not as many as there may be")
		}
	}
	in, err := new(dns.Msg).SetQuestion("google.com.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write(in); err != nil {
		t.Fatal(err)
	}
	if m := askOnce(t, client, "example.com."); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("one too many: %v", m)
	}
	for range 100 {
		if got := dnstest.Text(askOnce(t, client, backendName)); got != "NOERROR: A 10.96.100.50" {
			t.Fatalf("a name of the cluster: %s", got)
		}
	}
	for _, a := range others {
		s.work.done(a)
	}
}

// What cannot be read is FORMERR with the query's id, or nothing when there is none.
func TestBadDatagrams(t *testing.T) {
	s, client := loopback(t)
	defer s.Keep(nil)
	good := packed(t, backendName, dns.TypeA)
	for what, raw := range map[string][]byte{"cut": good[:20],
		"a label too long": append(append([]byte(nil), good[:12]...), 0x80, 0, 0, 0, 0)} {
		if err := client.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write(raw); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		n, err := client.Read(buf)
		if err != nil || n < wire.HeaderLen || binary.BigEndian.Uint16(buf) != binary.BigEndian.Uint16(good) ||
			buf[3]&0xf != dns.RcodeFormatError {
			t.Errorf("%s: %x, %v", what, buf[:n], err)
		}
	}
	for _, raw := range [][]byte{nil, {1, 2, 3}} { // no answer, and no end of the server
		if _, err := client.Write(raw); err != nil {
			t.Fatal(err)
		}
	}
	if m := askOnce(t, client, backendName); m.Rcode != dns.RcodeSuccess {
		t.Error(m)
	}
}

// Both ways of answering count, under CoreDNS's names, and what a closed socket has
// counted stays.
func TestMetricsHaveTheNamesOfCoreDNS(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := New(fill(t, dnstest.Cluster(t)), reg, slog.New(slog.DiscardHandler))
	s.Configure(schema.Settings{Domains: []string{"cluster.local."},
		Clients: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Listen(schema.Socket{Network: "udp", Addr: conn.LocalAddr().(*net.UDPAddr).AddrPort()}, nil, conn)
	client, err := net.Dial("udp", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for range 3 {
		askOnce(t, client, backendName)
	}
	askOnce(t, client, "nobody.default.svc.cluster.local.")
	askOnce(t, client, "google.com.") // no upstream: the slow path
	stranger, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("udp",
		conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := stranger.Write(packed(t, backendName, dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	const want = `coredns_dns_request_duration_seconds 5
coredns_dns_requests_total udp A 5
coredns_dns_responses_total NOERROR 3
coredns_dns_responses_total NXDOMAIN 1
coredns_dns_responses_total SERVFAIL 1
wayleave_dns_foreign_clients_total 1
wayleave_dns_overload_total 0
wayleave_dns_prebuilt_answers_total 4
wayleave_dns_tcp_connections 0
wayleave_dns_tcp_evicted_total 0
`
	compare := func() error {
		if got := shown(t, reg); got != want {
			return fmt.Errorf("metrics are\n%s", got)
		}
		return nil
	}
	testnet.Eventually(t, 5*time.Second, compare)
	s.Keep(nil)
	if err := compare(); err != nil {
		t.Errorf("after the socket was closed: %v", err)
	}
}

// shown is a line for each series of the server itself: name, labels, value.
func shown(t *testing.T, reg prometheus.Gatherer) string {
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, f := range families {
		if n := f.GetName(); strings.Contains(n, "upstream") || strings.Contains(n, "_cache_") ||
			strings.Contains(n, "_forward_") || strings.Contains(n, "autopath") {
			continue // of the forwarder and of callers
		}
		for _, m := range f.GetMetric() {
			out.WriteString(f.GetName())
			for _, l := range m.GetLabel() {
				out.WriteString(" " + l.GetValue())
			}
			value := m.GetCounter().GetValue()
			if h := m.GetHistogram(); h != nil {
				value = float64(h.GetSampleCount())
			}
			fmt.Fprintf(&out, " %v\n", value)
		}
	}
	return out.String()
}

// Who may ask is found by prefix, whatever their number, as by going through all.
func TestClientsArePrefixes(t *testing.T) {
	c := schema.NewClients([]netip.Prefix{netip.MustParsePrefix("10.244.1.7/24"),
		netip.MustParsePrefix("10.244.128.0/17"),
		netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("fd00:1::/64"), {}})
	for a, want := range map[string]bool{"10.244.1.200": true, "10.244.2.1": false, "10.244.200.1": true,
		"192.0.2.1": true, "192.0.2.2": false, "fd00:1::9": true, "fd00:2::9": false, "::1": false} {
		if got := c.Allowed(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
}

// A loop that ends by a fault takes its socket with it, so that the kernel sends
// queries elsewhere.
func TestASocketThatFailsIsClosed(t *testing.T) {
	s, client := loopback(t)
	for _, u := range s.udpSockets() {
		for _, r := range u.readers {
			r.inMsg[0].hdr.Iov = nil // recvmmsg refuses: EFAULT
		}
	}
	for range 400 { // more than one loop bears in a row
		if _, err := client.Write([]byte{0}); err != nil {
			break // told by ICMP: the port is closed
		}
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if left := s.Sockets(); len(left) > 0 {
			_, _ = client.Write([]byte{0})
			return fmt.Errorf("%v is open", left)
		}
		l, err := net.ListenPacket("udp", client.RemoteAddr().String())
		if err == nil {
			err = l.Close()
		}
		return err
	})
}
