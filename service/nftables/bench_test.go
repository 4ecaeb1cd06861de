package nftables

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// big is a cluster of many services with ten endpoints each, as the design's
// numbers are for: one TCP port, one family.
func big(services int) map[model.Name]service.Plan {
	plans := map[model.Name]service.Plan{}
	for i := range services {
		plans[name(i)] = ten(i, 0)
	}
	return plans
}

// ten is the i-th service, its last endpoint chosen by variant.
func ten(i, variant int) service.Plan {
	vip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
	p := service.Plan{VIPs: []netip.Addr{vip}}
	var slots []netip.AddrPort
	for j := range 10 {
		n := i*10 + j
		if j == 9 {
			n += variant * 1_000_000
		}
		slots = append(slots, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 128 + byte(n>>16), byte(n >> 8), byte(n)}),
			8080))
	}
	p.Frontends = []service.FrontendPlan{{Frontend: service.Frontend{Addr: vip, Protocol: model.TCP, Port: 80},
		Slots: slots}}
	return p
}

func real(b *testing.B) *Mode {
	b.Helper()
	ns := testnet.New(b, "bench")
	conn, err := nft.NewKernel(ns.FD())
	if err != nil {
		b.Fatal(err)
	}
	track, err := conntrack.NewKernel(ns.FD())
	if err != nil {
		b.Fatal(err)
	}
	m := New(conn, track)
	m.SetNodeFacts(local())
	return m
}

var sizes = []int{100, 1000, 10_000}

// From an empty kernel.
func BenchmarkFirstSync(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("%dx10", n), func(b *testing.B) {
			plans := big(n)
			for range b.N {
				b.StopTimer()
				m := real(b)
				b.StartTimer()
				if err := m.Sync(b.Context(), plans); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(residentMB(b), "peakRSS-MB")
		})
	}
}

// A restart: all is there already.
func BenchmarkAdopt(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("%dx10", n), func(b *testing.B) {
			plans, m := big(n), real(b)
			if err := m.Sync(b.Context(), plans); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for range b.N {
				if err := m.Sync(b.Context(), plans); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// One endpoint is replaced by another.
func BenchmarkOneChange(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("%dx10", n), func(b *testing.B) {
			plans, m := big(n), real(b)
			before := heapMB()
			if err := m.Sync(b.Context(), plans); err != nil {
				b.Fatal(err)
			}
			kept := heapMB() - before
			b.ResetTimer()
			for i := range b.N {
				if err := m.Apply(b.Context(), map[model.Name]service.Plan{name(i % n): ten(i%n, 1+i/n%2)},
					nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(kept, "heap-MB")
		})
	}
}

// heapMB is what the garbage collector leaves.
func heapMB() float64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)
	return float64(s.HeapAlloc) / 1e6
}

// residentMB is the most memory that this process had so far.
func residentMB(b *testing.B) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kb float64
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		b.Fatal(err)
	}
	return kb / 1000
}
