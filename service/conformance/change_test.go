package conformance

import (
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// slow is the pace in the VM: an emulated processor has enough to do.
const slow = 0.2

// drain is longer than a step of these tests takes in a slow machine.
const drain = 2 * time.Minute

func changingWorld(t *testing.T, kind string, drain time.Duration) (w *World, all []*Changing) {
	w = NewWorld(t, func(n *Node) Mode {
		c := NewChanging(t, n, drain)
		c.Become(kind)
		all = append(all, c)
		return c
	})
	return w, all
}

// changeAll walks through every ordered pair of the modes, on one network, with open
// connections and the loss meter at work.
func changeAll(t *testing.T, pace float64, walk []string) {
	testnet.Need(t, "iptables-nft")
	w, all := changingWorld(t, walk[0], drain)
	w.Meter()
	w.Set(web(), w.Pods[1], w.Pods[2])
	for i, to := range walk[1:] {
		t.Run(walk[i]+" to "+to, func(t *testing.T) {
			w.t = t
			for _, c := range all {
				c.t = t
			}
			live := Start(t, w, pace)
			live.Check("before")
			for _, c := range all {
				c.Become(to)
			}
			w.Program()
			live.Check("both are there")
			left := make(chan error, len(all))
			for _, c := range all {
				go func() { left <- c.Leave() }()
			}
			if walk[i] == "ipvs" {
				// Its connections are waited for, and nothing new comes to it.
				live.Check("while IPVS is left")
				live.Ask()
				if len(left) > 0 {
					t.Error("IPVS was left with open connections")
				}
				live.Close()
				live.Stop()
			}
			for range all {
				if err := <-left; err != nil {
					t.Error(err)
				}
			}
			if walk[i] != "ipvs" {
				live.Check("after")
				live.Stop()
			}
			live.Ask()
			for _, c := range all {
				if r := c.Remains(); len(r) > 0 {
					t.Errorf("%s: left: %s", c.node.Name, strings.Join(r, ", "))
				}
			}
		})
	}
}

// Changing the mode of a live node costs no packet and no connection, whichever it was
// and whichever it becomes: every ordered pair of these.
func TestChangingTheModeLosesNothing(t *testing.T) {
	t.Parallel()
	const a, b, c, d = "nftables", "iptables-nft", "iptables-legacy", "ebpf"
	changeAll(t, 1, []string{a, b, a, c, b, c, a, d, a, d, b, d, c, d})
}

// The same for every pair with IPVS, which is left only when its connections have ended.
func TestIPVSChanges(t *testing.T) {
	needIPVS(t)
	const v = "ipvs"
	changeAll(t, slow, []string{v, "nftables", v, "iptables-nft", v, "iptables-legacy", v})
}

// Connections that do not end are given up after ipvs.drain.
func TestIPVSIsLeftAfterItsLimit(t *testing.T) {
	needIPVS(t)
	w, all := changingWorld(t, "ipvs", 3*time.Second)
	w.Set(web(), w.Pods[2])
	conn, err := w.Pods[0].NS.Dial("tcp", vip(false).String(), late)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, _, err := say(conn, late); err != nil {
		t.Fatal(err)
	}
	all[0].Become("nftables")
	all[1].Become("nftables")
	w.Program()
	start := time.Now()
	if err := all[0].Leave(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 3*time.Second {
		t.Errorf("left after %s, with an open connection", took)
	}
	if r := all[0].Remains(); len(r) > 0 {
		t.Errorf("left: %s", strings.Join(r, ", "))
	}
}
