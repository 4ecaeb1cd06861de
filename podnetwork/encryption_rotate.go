package podnetwork

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/model"
	plan "wayleave.dev/podnetwork/wireguard"
)

// rotate replaces the key that is due, once no node uses its device any more.
func (e *encryption) rotate(now time.Time) error {
	i, due := e.rotation.Due(now)
	s := e.state.Load()
	if !due || s == nil {
		e.reportKept(i, "", now)
		return nil
	}
	if node, ok := e.inUse(s, i, now); ok {
		e.reportKept(i, node, now)
		return nil
	}
	key, err := wireguard.NewKey()
	if err != nil {
		return err
	}
	e.private[i], e.replaced[i] = key, now
	e.rotation.Done(now)
	e.reportKept(i, "", now)
	e.n.Log.Info("a key of encryption is replaced", "device", plan.Device(i), "key", key.Public())
	return nil
}

// inUse says whether a node is reached by a device, because the other one has no session with it, or has sent by it a
// moment ago. node may be empty: after a start, it is not known who sends.
func (e *encryption) inUse(s *EncryptionState, i int, now time.Time) (node string, ok bool) {
	for _, name := range slices.Sorted(maps.Keys(s.Routes.Via)) {
		if s.Routes.Via[name] == plan.Device(i) {
			return name, true
		}
	}
	last, by := e.usage.Since(i)
	return e.held[by], now.Sub(last) < e.rotation.Quiet()
}

// reportKept reports a key that is due and not replaced for a while, because a node uses its device. Without a node
// there is none.
func (e *encryption) reportKept(i int, node string, now time.Time) {
	if node == "" {
		e.kept = time.Time{}
		e.report("encryption rotation", nil)
		return
	}
	if e.kept.IsZero() {
		e.kept = now
	}
	if now.Sub(e.kept) < min(quietAfter, e.rotation.Quiet()) {
		return
	}
	e.report("encryption rotation", []model.Problem{e.problem("podnetwork.keyRotation", fmt.Sprintf("the key of %s is "+
		"kept: node %s still uses the device; look whether its agent runs, and whether the clocks of the nodes agree",
		plan.Device(i), node))})
}
