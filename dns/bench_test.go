package dns

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/model"
)

// BenchmarkServer asks over a real socket, with 16 queries under way. The time is
// that of client and server together; docs/bench-dns.md has the server's own.
func BenchmarkServer(b *testing.B) {
	s := NewServer(fill(b, cluster(b)), prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	s.Configure(Settings{Domains: []string{"cluster.local."},
		Clients: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	k := Socket{"udp", conn.LocalAddr().(*net.UDPAddr).AddrPort()}
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

// BenchmarkChange changes one endpoint of a headless service of that size, among
// 1,000 services.
func BenchmarkChange(b *testing.B) {
	for _, size := range []int{10, 1000} {
		b.Run(fmt.Sprint(size, " endpoints"), func(b *testing.B) {
			z := NewZone()
			var e [2]Entry
			for i := range size {
				h := Host{Addr: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}
				h.Name = addressLabel(h.Addr)
				e[0].Hosts = append(e[0].Hosts, h)
			}
			e[0].Ports = []Port{{Name: "http", Protocol: "tcp", Port: 80}}
			e[1] = e[0]
			e[1].Hosts = e[0].Hosts[1:]
			for i := range 1000 {
				z.Set(model.Name{Namespace: "default", Name: fmt.Sprint("s", i)}, &e[0])
				if size > 10 {
					break
				}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				z.Set(model.Name{Namespace: "default", Name: "s0"}, &e[i%2])
			}
		})
	}
}
