package podnetwork

import (
	"context"
	"fmt"
	"slices"
	"time"

	"wayleave.dev/model"
	plan "wayleave.dev/podnetwork/wireguard"
)

// quietAfter is how long a node whose keys are known may be without a handshake before that is told.
const quietAfter = 30 * time.Second

// tell reports nodes that cannot be reached encrypted, and a Lease that does not have this node's keys.
func (e *encryption) tell(s *EncryptionState, published, own plan.Published, now time.Time) {
	var problems []model.Problem
	what := "packets between their pods are not encrypted"
	if e.Strict {
		what = "packets between their pods are dropped"
	}
	since := map[string]time.Time{}
	for i := range s.Peers {
		p := &s.Peers[i]
		if p.Note == "" {
			continue
		}
		since[p.Node] = now
		if at, ok := e.since[p.Node]; ok {
			since[p.Node] = at
		}
		if now.Sub(since[p.Node]) < quietAfter || len(problems) == maxNamedNodes {
			continue
		}
		reason := fmt.Sprintf("%s: %s", p.Note, what)
		if p.Note == "no handshake" {
			reason = fmt.Sprintf("no handshake succeeds: %s; let UDP ports %d and %d pass between the nodes, and look "+
				"whether each node has the keys that the other one publishes (wayleave status --encryption)", what,
				e.Port, e.Port+1)
		}
		problem := e.problem("encryption to "+p.Node, reason)
		problem.Event = "EncryptionFailed"
		problems = append(problems, problem)
	}
	e.since = since
	e.report("encryption peers", problems)
	problems = nil
	if !published.IsZero() && published != own {
		if e.differs.IsZero() {
			e.differs = now
		}
		if now.Sub(e.differs) > quietAfter {
			p := e.problem("encryption", "the Lease of this node has other keys than its devices: other nodes send "+
				"what this node cannot read; it is written again")
			p.Event = "EncryptionKeyMismatch"
			problems = append(problems, p)
		}
	} else {
		e.differs = time.Time{}
	}
	e.report("encryption keys", problems)
}

// leave takes out what encryption left, where the setting is none now. Other nodes get time to notice that this one has
// no keys any more: until then, it takes what they send encrypted.
func (e *encryption) leave(ctx context.Context) error {
	if e.Devices == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := e.guard.Remove(ctx); err != nil {
		return err
	}
	there, err := e.deviceLeft()
	if err != nil {
		return err
	}
	e.Keys.Publish(plan.Published{})
	if there {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(e.Linger):
		}
		for i := range plan.Devices {
			if err := e.Devices.Remove(ctx, plan.Device(i)); err != nil {
				return err
			}
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// deviceLeft says whether a device is there.
func (e *encryption) deviceLeft() (bool, error) {
	for i := range plan.Devices {
		there, err := e.n.Kernel.HasLink(plan.Device(i))
		if there || err != nil {
			return there, err
		}
	}
	return false, nil
}

// Encryption returns what is known of encryption, nil for none yet. Safe for concurrent use.
func (n *Network) Encryption() *EncryptionState { return n.encryption.state.Load() }

// PlainCounts is how many packets of pods were not encrypted.
type PlainCounts struct {
	// Dropped are those of strict encryption, by node.
	Dropped map[string]plan.Dropped
	// Seen are those that passed the uplink, with and without strict encryption, and Uplink is its name.
	Seen   uint64
	Uplink string
}

// PlainCounts asks the kernel. Safe for concurrent use.
func (n *Network) PlainCounts(ctx context.Context) (PlainCounts, error) {
	c := PlainCounts{Dropped: map[string]plan.Dropped{}}
	c.Seen, c.Uplink = n.encryption.witness.Seen()
	counts, err := n.encryption.guard.Counts(ctx)
	if err != nil {
		return c, err
	}
	for node := range n.Store.Snapshot().Nodes() {
		var sum plan.Dropped
		for p, d := range counts {
			if slices.Contains(node.PodCIDRs, p) {
				sum.Out, sum.In, sum.NoKey = sum.Out+d.Out, sum.In+d.In, sum.NoKey+d.NoKey
			}
		}
		if sum != (plan.Dropped{}) {
			c.Dropped[node.Name] = sum
		}
	}
	return c, nil
}

// encryptionFacts are lines for status.
func (n *Network) encryptionFacts() []string {
	s := n.Encryption()
	if s == nil {
		return nil
	}
	mode := "wireguard-preferred"
	if s.Routes.Strict {
		mode = "wireguard"
	}
	return []string{fmt.Sprintf("encryption %s by WireGuard in the %s: %d of %d other nodes are reached encrypted "+
		"(status --encryption lists them)", mode, s.Kind, len(s.Routes.Via), len(s.Peers))}
}
