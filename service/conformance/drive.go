package conformance

import (
	"context"

	"wayleave.dev/model"
	"wayleave.dev/service"
)

// Driven drives one of Wayleave's modes by changes, as the agent does. The first time, and after a disturbance, it
// applies the complete state.
type Driven struct {
	Mode  service.Mode
	Node  string
	have  map[model.Name]service.Plan
	known bool
}

// Program implements a part of Mode.
func (m *Driven) Program(ctx context.Context, snap model.Snapshot) error {
	plans := map[model.Name]service.Plan{}
	for s := range snap.Services() {
		if p, ok, _ := service.Make(snap, s.Name, m.Node); ok {
			plans[s.Name] = p
		}
	}
	if !m.known {
		m.have, m.known = plans, true
		return m.Mode.Sync(ctx, plans)
	}
	set, del := map[model.Name]service.Plan{}, []model.Name{}
	for k, p := range plans {
		if old, ok := m.have[k]; !ok || !service.Equal(old, p) {
			set[k] = p
		}
	}
	for k := range m.have {
		if _, ok := plans[k]; !ok {
			del = append(del, k)
		}
	}
	m.have = plans
	if len(set)+len(del) == 0 {
		return nil
	}
	return m.Mode.Apply(ctx, set, del)
}

// Forget makes the next Program start from the kernel's state.
func (m *Driven) Forget() { m.known = false }
