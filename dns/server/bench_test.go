package server

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/dnstest"
)

// BenchmarkServer asks over a real socket, with 16 queries under way. The time is
// that of client and server together; docs/bench-dns.md has the server's own.
func BenchmarkServer(b *testing.B) {
	s := New(fill(b, dnstest.Cluster(b)), prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	s.Configure(schema.Settings{Domains: []string{"cluster.local."},
		Clients: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	k := schema.Socket{Network: "udp", Addr: conn.LocalAddr().(*net.UDPAddr).AddrPort()}
	s.Listen(k, nil, conn)
	defer s.Keep(nil)
	client, err := net.Dial("udp", k.Addr.String())
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	in, err := new(dns.Msg).SetQuestion(backendName, dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	buf := make([]byte, 4096)
	b.ResetTimer()
	for asked, got := 0, 0; got < b.N; got++ {
		for ; asked < b.N && asked-got < 16; asked++ {
			if _, err := client.Write(in); err != nil {
				b.Fatal(err)
			}
		}
		if err := client.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			b.Fatal(err)
		}
		if _, err := client.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
