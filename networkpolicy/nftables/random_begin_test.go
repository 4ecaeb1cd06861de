package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"wayleave.dev/kernel/bpf/fastpath"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	"wayleave.dev/networkpolicy/world"
)

// fastPath has the programs of mode ebpf at the links of all ends. It returns how many connections began by
// redirection.
func (a *arena) fastPath() (begun func() uint64) {
	a.t.Helper()
	k := &fastpath.Kernel{NSFD: a.node.FD()}
	if err := k.Possible(); errors.Is(err, fastpath.ErrUnsupported) {
		a.t.Skip(err)
	}
	a.node.Sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1")
	a.conn.Changed = k.Revoke
	var s fastpath.State
	for i, e := range a.ends {
		link := fmt.Sprintf("p%d", i)
		if world.Names()[i] == world.Outside {
			s.Uplinks = append(s.Uplinks, link)
		} else {
			s.Pods = append(s.Pods, fastpath.Pod{Link: link, Addrs: e.addrs[:]})
		}
	}
	if r, err := k.Set(a.t.Context(), s); err != nil || r.Pods != len(a.ends)-1 || r.Uplinks != 1 {
		a.t.Fatalf("the fast path is at %+v, %v", r, err)
	}
	a.t.Cleanup(func() { _ = k.Remove(a.t.Context()) })
	return func() uint64 {
		n, err := k.Redirected()
		if err != nil {
			a.t.Fatal(err)
		}
		return n.Begun
	}
}

// establish answers the SYNs that were sent last for these shots, and sends data.
func (a *arena) establish(list []shot) {
	a.t.Helper()
	const seq, ack = 16, 18 // the flags ACK, and SYN with ACK
	for _, back := range []bool{true, false, false} {
		for _, s := range list {
			from, to := s.From, s.To
			sport, dport, flags := a.sport, s.Port, byte(seq)
			if back {
				from, to, sport, dport, flags = s.To, s.From, s.Port, a.sport, ack
			}
			e := a.ends[slices.Index(world.Names(), from)]
			src, dst := at(e.addrs, s.IPv6), at(a.ends[slices.Index(world.Names(), to)].addrs, s.IPv6)
			a.sendRaw(e, segment(src, dst, sport, dport, flags), src, dst)
		}
		a.settle()
	}
}

// segment is a packet of TCP with data.
func segment(src, dst netip.Addr, sport, dport uint16, flags byte) []byte {
	l4 := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, sport), dport)
	l4 = append(l4, 0, 0, 0, 9, 0, 0, 0, 9, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0, 'd', 'a', 't', 'a')
	return network(src, dst, model.TCP, uint8(model.TCP), l4, 16)
}

// Policies change at random while connections begin on the fast path: each SYN goes as Evaluate says, both at once
// after a change, when the fast path knows what the policies before it allowed, and again when it knows those that
// hold.
func TestRandomPoliciesWhileConnectionsBeginOnTheFastPath(t *testing.T) {
	sets, seed := setting(t, "WAYLEAVE_POLICY_SETS", 60), setting(t, "WAYLEAVE_POLICY_SEED", 8)
	t.Logf("WAYLEAVE_POLICY_SEED=%d", seed)
	d := dice{rand.New(rand.NewPCG(uint64(seed), 19))}
	a := newArena(t)
	begun := a.fastPath()
	base, err := world.Read("base", "== base")
	if err != nil {
		t.Fatal(err)
	}
	step := base[0].Steps[0]
	if err := step.Put(a.store); err != nil {
		t.Fatal(err)
	}
	if err := a.follow(); err != nil {
		t.Fatal(err)
	}
	all := slices.DeleteFunc(shots(step, false, false), func(s shot) bool { return s.Protocol != model.TCP })
	allowed, denied := 0, 0
	for i := range sets {
		if err := a.store.Write(func(w *model.Writer) { d.change(w, step.Pods) }); err != nil {
			t.Fatal(err)
		}
		snap := a.store.Snapshot()
		var list, open []shot
		for _, s := range all {
			from := networkpolicy.Identify(snap, world.Local(), world.Addr(s.From, s.IPv6))
			to := networkpolicy.Identify(snap, world.Local(), world.Addr(s.To, s.IPv6))
			s.Want = networkpolicy.Evaluate(snap, from, to, s.Protocol, s.Port).Allowed
			list = append(list, s)
			if s.Want {
				open = append(open, s)
			}
		}
		allowed, denied = allowed+len(open), denied+len(list)-len(open)
		if err := a.follow(); err != nil {
			t.Fatalf("set %d: %v", i, err)
		}
		for _, when := range []string{"at once", "later"} {
			a.sport++
			for _, s := range a.check(list) {
				t.Errorf("set %d: %s: %s: Evaluate says %t", i, when, s, s.Want)
			}
			a.establish(open)
		}
		if t.Failed() {
			for p := range snap.NetworkPolicies() {
				t.Logf("%+v", *p)
			}
			t.Fatalf("the kernel has\n%s", a.node.Run("nft", "list", "ruleset"))
		}
		a.node.ForgetFlows()
	}
	t.Logf("%d SYNs were allowed, %d denied, and %d began connections on the fast path", 2*allowed, 2*denied, begun())
	if allowed < 100 || denied < 100 || begun() == 0 {
		t.Error("too few of a kind")
	}
}
