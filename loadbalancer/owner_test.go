package loadbalancer

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

func addresses(n int) []netip.Addr {
	var all []netip.Addr
	v4, v6 := netip.MustParseAddr("192.0.2.0"), netip.MustParseAddr("2001:db8::")
	for range n / 2 {
		v4, v6 = v4.Next(), v6.Next()
		all = append(all, v4, v6)
	}
	return all
}

func willing(string) Standing { return Willing }

// The order is part of what agents of different versions agree on.
func TestTheOrderIsTheSameForEver(t *testing.T) {
	nodes := []string{"node1", "node2", "node3"}
	for _, c := range []struct {
		addr  string
		score uint64
		want  []string
	}{
		{"192.0.2.1", 0x89271b17181bff53, []string{"node2", "node1", "node3"}},
		{"192.0.2.2", 0x10831766a1a714d6, []string{"node3", "node2", "node1"}},
		{"2001:db8::1", 0xc7042863c7513da9, []string{"node1", "node2", "node3"}},
	} {
		addr := netip.MustParseAddr(c.addr)
		if got := Score(addr, "node1"); got != c.score {
			t.Errorf("%s: node1 scores %#x, want %#x", addr, got, c.score)
		}
		if got := Order(addr, nodes); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", addr, got, c.want)
		}
	}
	if Score(netip.MustParseAddr("::ffff:192.0.2.1"), "a") != Score(netip.MustParseAddr("192.0.2.1"), "a") {
		t.Error("a mapped address has an order of its own")
	}
}

// 100 addresses over 3 nodes: none has less than two thirds of its share, or more than
// four thirds.
func TestAddressesAreSpreadEvenly(t *testing.T) {
	for _, nodes := range [][]string{{"node1", "node2", "node3"}, {"a", "b", "c"},
		{"worker-1.example.com", "worker-2.example.com", "worker-3.example.com"}} {
		count := map[string]int{}
		for _, a := range addresses(100) {
			count[Owner(a, nodes, willing)]++
		}
		for _, n := range nodes {
			if count[n] < 22 || count[n] > 44 {
				t.Errorf("%s owns %d of 100", n, count[n])
			}
		}
	}
}

// When a node goes, only its addresses move; when it comes back, only those move back.
func TestOnlyAddressesOfALostNodeMove(t *testing.T) {
	var nodes []string
	for i := range 5 {
		nodes = append(nodes, fmt.Sprint("node", i))
	}
	for _, lost := range nodes {
		for _, a := range addresses(200) {
			before := Owner(a, nodes, willing)
			after := Owner(a, nodes, func(n string) Standing {
				if n == lost {
					return Dead
				}
				return Willing
			})
			if before != lost && after != before {
				t.Errorf("%s moved from %s to %s when %s went", a, before, after, lost)
			}
			if after == lost {
				t.Errorf("%s is owned by the dead %s", a, lost)
			}
		}
	}
}

func TestWhoMayOwn(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.1")
	all := Order(a, []string{"a", "b", "c"}) // best first
	for _, c := range []struct {
		name     string
		eligible []string
		standing []Standing // in the order of all
		want     string
	}{
		{"the best", all, []Standing{Willing, Willing, Willing}, all[0]},
		{"not one that is dead", all, []Standing{Dead, Willing, Willing}, all[1]},
		{"not one that is reluctant", all, []Standing{Reluctant, Willing, Willing}, all[1]},
		{"a reluctant one when none is willing", all, []Standing{Reluctant, Dead, Reluctant}, all[0]},
		{"a reluctant one that is not the best", all, []Standing{Dead, Dead, Reluctant}, all[2]},
		{"not one that is not eligible", all[1:], []Standing{Willing, Reluctant, Willing}, all[2]},
		{"the order of eligible does not matter", []string{all[2], all[1], all[0]}, []Standing{Willing, Willing,
			Willing}, all[0]},
		{"nobody lives", all, []Standing{Dead, Dead, Dead}, ""},
		{"nobody is eligible", nil, []Standing{Willing, Willing, Willing}, ""},
	} {
		got := Owner(a, c.eligible, func(n string) Standing { return c.standing[slices.Index(all, n)] })
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
