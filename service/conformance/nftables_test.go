package conformance

import (
	"testing"

	"wayleave.dev/internal/testnet"
)

// nftMode drives the nftables mode.
type nftMode struct{ Driven }

func (m *nftMode) Disturb(node *testnet.NS) {
	node.Run("nft", "flush", "ruleset")
	m.Forget()
}

func TestNftables(t *testing.T) {
	t.Parallel()
	Run(t, realNftables(t))
}
