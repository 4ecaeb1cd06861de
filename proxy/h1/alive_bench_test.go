package h1

import (
	"testing"

	"wayleave.dev/internal/testnet"
)

// BenchmarkAlive is what the look at a kept connection costs before each request.
func BenchmarkAlive(b *testing.B) {
	client, _ := testnet.TCP(b)
	u := Dialed(client, NewShared())
	b.ReportAllocs()
	for b.Loop() {
		if !u.Alive() {
			b.Fatal("it has nothing to read")
		}
	}
}
