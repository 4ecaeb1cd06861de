package bgp

import (
	"context"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/model"
	"wayleave.dev/writeback"
)

var _ agent.Writer = (*Feature)(nil)

// WriterKinds implements agent.Writer. The writer has no right to the Secrets with passwords, and creates the kinds.
func (f *Feature) WriterKinds(config.Config) agent.Kinds {
	return agent.Kinds{Watched: model.BGPKinds&^model.PeerSecretKind | model.AddressPoolKind}
}

// Write implements agent.Writer: conditions of the objects.
func (f *Feature) Write(c *agent.Cluster) []agent.Part {
	return []agent.Part{{Name: "conditions of BGP", Run: func(ctx context.Context) error {
		b := &writeback.BGP{Dynamic: c.Client.Dynamic, Store: c.Store, Report: c.ReportTo("bgp objects"),
			SetCondition: func(err error) { c.SetCondition("bgp", err) }, Health: c.Health("bgp objects"), Log: c.Log}
		return b.Run(ctx)
	}}}
}
