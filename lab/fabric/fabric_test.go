package fabric

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func TestPlanGivesEverybodyAnAddress(t *testing.T) {
	for _, dual := range []bool{false, true} {
		p, err := NewPlan(MaxNodes, dual)
		if err != nil {
			t.Fatal(err)
		}
		families := 1
		if dual {
			families = 2
		}
		seen := map[netip.Addr]string{}
		for _, m := range p.Machines() {
			if len(m.Addresses) != families {
				t.Errorf("%s has %v", m.Name, m.Addresses)
			}
			for i, a := range m.Addresses {
				gateways := p.Gateways
				if m.Name == p.Client.Name {
					gateways = m.Gateways
				}
				if seen[a.Addr()] != "" || !gateways[i].Contains(a.Addr()) || a == gateways[i] {
					t.Errorf("%s has %s; gateways %v, others %v", m.Name, a, gateways, seen)
				}
				seen[a.Addr()] = m.Name
			}
			if len(m.Namespace) > 14 || !ours.MatchString(m.Namespace) {
				t.Errorf("namespace %q", m.Namespace)
			}
		}
	}
	if got := within(fabricV6, 11).String(); got != "fd00:30::b/64" {
		t.Errorf("got %s", got)
	}
	for _, nodes := range []int{0, -1, MaxNodes + 1} {
		if _, err := NewPlan(nodes, false); err == nil || !strings.Contains(err.Error(), fmt.Sprint(nodes)) {
			t.Errorf("%d nodes: %v", nodes, err)
		}
	}
}

func TestOnlyOwnNamespacesAreRemoved(t *testing.T) {
	for name, want := range map[string]bool{Bridge: true, Control: true, Outside: true, Client: true, "wl-node12": true,
		"wl-node": false, "wl-nodes1": false, "wl-other": false, "xwl-node1": false} {
		if ours.MatchString(name) != want {
			t.Errorf("%s is ours: %t", name, !want)
		}
	}
}

func TestAddressOfFamily(t *testing.T) {
	p, err := NewPlan(1, true)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Nodes[0].Address(PodsV6); !got.Is6() {
		t.Errorf("got %s for %s", got, PodsV6)
	}
	if got := p.Nodes[0].Address(PodsV4); !got.Is4() {
		t.Errorf("got %s for %s", got, PodsV4)
	}
}

func TestNamespaceIsMadeUsedAndRemoved(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN)")
	}
	name := fmt.Sprintf("wlt-%d", os.Getpid())
	t.Cleanup(func() {
		if err := Delete(name); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(File(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left behind: %v", err)
		}
		_ = os.Remove(folder) // if this test made it
	})
	if err := Create(name); err != nil {
		t.Fatal(err)
	}
	if err := Create(name); err == nil {
		t.Error("made a second time")
	}
	outside, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	err = Do(name, func() error {
		inside, err := net.Interfaces()
		if err == nil && (len(inside) < 1 || inside[0].Name != "lo" || len(inside) >= len(outside) &&
			len(outside) > 1) {
			err = fmt.Errorf("interfaces inside: %v", inside)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if after, err := net.Interfaces(); err != nil || len(after) != len(outside) {
		t.Errorf("interfaces of the host: %v, before %v, %v", after, outside, err)
	}
	if err := Do("wlt-none", func() error { return nil }); err == nil {
		t.Error("entered a namespace that is not there")
	}
}
