package nftables

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// BenchmarkSync is what an agent that starts does, from the planned entries to the
// kernel's commit: into an empty kernel, and into one that has them.
func BenchmarkSync(b *testing.B) {
	for _, n := range []int{1, largePolicies} {
		b.Run(fmt.Sprintf("policies=%d/empty", n), func(b *testing.B) {
			w := newLarge(b, n, realMode(b, testnet.New(b, "node")))
			w.follow()
			for b.Loop() {
				b.StopTimer()
				if err := w.mode.Remove(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := w.mode.Sync(b.Context(), maps.Clone(w.entries)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(w.entries)), "entries")
		})
		b.Run(fmt.Sprintf("policies=%d/restart", n), func(b *testing.B) {
			w := newLarge(b, n, realMode(b, testnet.New(b, "node")))
			w.follow()
			for b.Loop() {
				if err := w.mode.Sync(b.Context(), maps.Clone(w.entries)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkChange is one change, from the write to the model to the kernel's commit.
func BenchmarkChange(b *testing.B) {
	put := func(node string) func(w *model.Writer, i int) {
		return func(w *model.Writer, i int) {
			if p := largePod(largePods, node); i%2 == 0 {
				w.PutPod(p)
			} else {
				w.Delete(model.PodKind, p.Name)
			}
		}
	}
	for _, n := range []int{1, largePolicies} {
		w := newLarge(b, n, realMode(b, testnet.New(b, "node")))
		w.follow()
		for _, c := range []struct {
			name string
			do   func(w *model.Writer, i int)
		}{
			{"a pod comes or goes here", put("here")},
			{"a pod comes or goes elsewhere", put("there")},
			{"a label of a pod", func(w *model.Writer, i int) {
				p := largePod(210, "there")
				p.Labels["app"] = fmt.Sprintf("app%d", i%2)
				w.PutPod(p)
			}},
			{"a policy", func(w *model.Writer, i int) {
				p := largePolicy(0)
				p.Ingress[1].Ports[0].To = uint16(10000 + i%2)
				w.PutNetworkPolicy(p)
			}},
		} {
			b.Run(fmt.Sprintf("policies=%d/%s", n, c.name), func(b *testing.B) {
				i, changed := 0, 0
				for b.Loop() {
					w.write(func(tx *model.Writer) { c.do(tx, i) })
					changed += w.follow()
					i++
				}
				b.ReportMetric(float64(changed)/float64(i), "entries/op")
			})
		}
	}
}

// BenchmarkPackets is what packets pay, between an isolated pod and one of another node: a
// round trip of an established flow, and the first packet and its answer of a new one.
func BenchmarkPackets(b *testing.B) {
	for _, n := range []int{0, 1, largePolicies} {
		l := newLab(b)
		if n > 0 {
			w := newLarge(b, n, l.mode)
			w.follow()
			if _, ok := w.entries[entryKey{Kind: 0, Direction: in, Addr: largeAddr(0)}]; !ok {
				b.Fatal("the pod is not isolated")
			}
		}
		to := port(largeAddr(0), 80).String()
		b.Run(fmt.Sprintf("policies=%d/established", n), func(b *testing.B) {
			c, err := l.outside.DialFrom("udp", netip.AddrPortFrom(largeAddr(210), 0).String(), to, patience)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			for b.Loop() {
				if err := echoed(c, patience); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("policies=%d/new", n), func(b *testing.B) {
			for b.Loop() {
				c, err := l.outside.DialFrom("udp", netip.AddrPortFrom(largeAddr(210), 0).String(), to, patience)
				if err != nil {
					b.Fatal(err)
				}
				err = echoed(c, patience)
				c.Close()
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
