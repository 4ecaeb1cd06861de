package veth

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
)

// When Setup returns, the pod takes packets to each of its addresses. Pods that start beside keep the kernel's work
// queues waiting for the lock of all links.
func TestAPodTakesPacketsWhenSetupReturns(t *testing.T) {
	node := testnet.New(t, "node")
	host, err := NewHost(node.FD(), "/proc/sys/net")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for worker := range 8 {
		pod := testnet.New(t, fmt.Sprintf("pod%d", worker))
		file, err := os.Open(pod.Path())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		handle, err := netlink.NewHandleAt(netns.NsHandle(pod.FD()), unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(handle.Close)
		wg.Go(func() {
			for round := range 25 {
				l := Link{Name: "eth0", HostName: fmt.Sprintf("wy%d", worker), MTU: 1500, IPs: []netip.Addr{
					netip.AddrFrom4([4]byte{10, 0, byte(worker), byte(round)}),
					netip.MustParseAddr(fmt.Sprintf("fd00::%x:%x", worker, round))}}
				if _, err := host.Setup(file, l); err != nil {
					t.Error(err)
					return
				}
				for _, ip := range l.IPs {
					routes, err := handle.RouteGet(ip.AsSlice())
					if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
						t.Errorf("%s of pod %d is not local when Setup returns: %v, %v", ip, worker, routes, err)
					}
				}
				if err := host.Teardown(l.HostName); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
