package fabric

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// Cable plugs a machine into the segment or pulls it out: its uplink keeps addresses and
// routes, and has no carrier.
func Cable(machine string, in bool) error {
	return Do(Bridge, func() error {
		port, err := netlink.LinkByName(machine)
		if err != nil {
			return fmt.Errorf("cable of %s: %w", machine, err)
		}
		set := netlink.LinkSetDown
		if in {
			set = netlink.LinkSetUp
		}
		if err := set(port); err != nil {
			return fmt.Errorf("cable of %s: %w", machine, err)
		}
		return nil
	})
}
