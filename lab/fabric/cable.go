package fabric

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// Cable connects a machine to the segment or disconnects it: its uplink keeps addresses and routes, and loses the
// carrier.
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
