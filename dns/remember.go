package dns

import (
	"errors"
	"net/netip"
	"slices"

	"wayleave.dev/internal/statefile"
)

// Remember makes the feed offer the sockets of the place in a Placement's file, until a place is known. An agent that
// starts without the API server cannot know otherwise where a starting server should listen. A missing file is no
// error. For a damaged file, the previous copy is used, and the error names the file.
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

// remember writes the place if it differs from the file. A failure is reported by Tell, and blocks nothing.
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
