package podnetwork

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/bpf/fastpath"
	"wayleave.dev/podnetwork/routes"
)

// fast has a machine use the fast path.
func fast(m *machine) { m.fast = true }

// needFastPath skips the test where the kernel has no fast path.
func needFastPath(t *testing.T) {
	t.Helper()
	if err := new(fastpath.Kernel).Possible(); errors.Is(err, fastpath.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// accelerated waits until a machine has the program at the links of that many pods.
func (m *machine) accelerated(pods int) {
	m.t.Helper()
	testnet.Eventually(m.t, 20*time.Second, func() error {
		if r := m.net.accelerated.Load(); r == nil || r.Pods != pods {
			problem, _ := m.bad.Load("podnetwork fast path")
			return fmt.Errorf("%s: the fast path is at %+v, want %d pods; %v", m.name, r, pods, problem)
		}
		return nil
	})
}

func (m *machine) redirected() fastpath.Redirected {
	m.t.Helper()
	n, err := m.net.Redirected()
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// All pods and nodes reach each other as without the fast path, by direct routes and by VXLAN. Transfers between pods
// take the fast path on both nodes.
func TestMatrixWithTheFastPath(t *testing.T) {
	needFastPath(t)
	bin := plugin(t)
	for _, mode := range []routes.Mode{routes.Auto, routes.VXLAN} {
		for _, mtu := range []int{1500, 9000} {
			t.Run(fmt.Sprintf("%s %d", mode, mtu), func(t *testing.T) {
				t.Parallel()
				s := newSegmentsOf(t, mode, families{"dual", true, true}, mtu, bin, fast)
				pods := everybody(t, s, mode)
				for i, m := range s.nodes {
					m.accelerated(1)
					for j, other := range s.nodes {
						if i == j {
							continue
						}
						for _, ip := range pods[j].ips {
							from, to := m.redirected(), other.redirected()
							if err := fetch(pods[i].ns, ip); err != nil {
								t.Error(err)
							}
							if got := other.redirected(); got.Remote == to.Remote {
								t.Errorf("%s sends to %s, and nothing takes the fast path", other.name, m.name)
							}
							if got := m.redirected(); got.Local == from.Local {
								t.Errorf("%s receives from %s, and nothing takes the fast path", m.name, other.name)
							}
						}
					}
				}
			})
		}
	}
}

// The setting is changed on one node after the other, agents restart between, and nothing is lost; pods that appear
// take the fast path, and nothing is left when it is off.
func TestTheFastPathChangesUnderTraffic(t *testing.T) {
	needFastPath(t)
	c := newClusterWith(t, routes.Auto)
	a, b, d := c.nodes[0].mustAdd("a"), c.nodes[0].mustAdd("b"), c.nodes[1].mustAdd("d")
	metered(t, a, []*pod{b, d}, 7000, func() {
		for _, on := range []bool{true, true, false, true} {
			for _, m := range c.nodes {
				m.stop()
				m.fast = on
				m.start(c.store)
			}
			if on {
				c.nodes[0].accelerated(2)
				c.nodes[1].accelerated(1)
			}
			time.Sleep(300 * time.Millisecond) // traffic on the new path
		}
	})
	for _, m := range c.nodes {
		if n := m.redirected(); n.Local == 0 || n.Remote == 0 || n.Begun == 0 {
			t.Errorf("%s redirected %+v", m.name, n)
		}
	}
	c.nodes[0].mustAdd("e")
	c.nodes[0].accelerated(3)
	for _, m := range c.nodes {
		m.stop()
		m.fast = false
		m.start(c.store)
		testnet.Eventually(t, 10*time.Second, func() error {
			left, err := m.net.FastPath.Conn.Remains(t.Context())
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("left are %v", left)
			}
			return err
		})
	}
}

// With encryption, only pods of one node take the fast path: packets to other nodes meet the rules that guard
// encryption.
func TestEncryptedPacketsTakeNoFastPath(t *testing.T) {
	n := &Network{Config: Config{FastPath: FastPath{On: true}}}
	n.links.Store(&routes.NodeLinks{})
	n.links.Load().Uplink.Name = "eth0"
	if s := n.fastPathState(nil); strings.Join(s.Uplinks, " ") != "eth0 "+routes.Device {
		t.Errorf("uplinks are %v", s.Uplinks)
	}
	n.Config.Encryption.Preferred = true
	if s := n.fastPathState(nil); len(s.Uplinks) > 0 {
		t.Errorf("uplinks with encryption are %v", s.Uplinks)
	}
}

// A packet with the address of a pod that ended, or of one that has the address now, does not pass by the fast path.
func TestAnAddressThatIsUsedAgainHasItsOwnLink(t *testing.T) {
	needFastPath(t)
	c := newClusterOf(t, routes.Auto, fast)
	m := c.nodes[0]
	a, b := m.mustAdd("a"), m.mustAdd("b")
	tell(b.ns)
	m.accelerated(2)
	expectSeen(t, a.ns, b.ips[0], a.ips[0])
	if _, err := m.plugin(conf, b.env("DEL")...); err != nil {
		t.Fatal(err)
	}
	m.accelerated(1)
	if _, err := who(a.ns, netip.AddrPortFrom(b.ips[0], 80)); err == nil {
		t.Error("a pod that ended answers")
	}
}
