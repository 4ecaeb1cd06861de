package dns

import (
	"errors"
	"net/netip"
	"slices"

	"wayleave.dev/internal/statefile"
)

// Remember has the feed give the sockets of the place that a Placement left in a file,
// until a place is known: an agent that starts while the API server is away has no
// other way to know where a server that starts then should listen. No file is no error;
// a broken one is an error that names it, and the copy from before is used.
func Remember(file string, f *Feed) error {
	place, err := readPlace(file)
	if list := sockets(place); len(list) > 0 {
		f.listenedBefore(list)
	}
	return err
}

func readPlace(file string) (Place, error) {
	return statefile.Read(file, func(p Place) error {
		if slices.ContainsFunc(append(slices.Clone(p.VIPs), p.Nodes...),
			func(a netip.Addr) bool { return !a.IsValid() }) {
			return errors.New("an address is empty")
		}
		return nil
	})
}

// remember writes the place, when the file has another one. That it cannot be written is told, and stops nothing.
func (p *Placement) remember(place Place) {
	if p.File == "" {
		return
	}
	old, err := readPlace(p.File)
	if err == nil && slices.Equal(old.VIPs, place.VIPs) && slices.Equal(old.Nodes, place.Nodes) {
		return
	}
	statefile.Keep(p.File, place, p.Tell)
}
