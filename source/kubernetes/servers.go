package kubernetes

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"wayleave.dev/internal/statefile"
	"wayleave.dev/model"
)

// Servers keeps the addresses of all API servers, which the cluster publishes in the EndpointSlices of
// default/kubernetes, so that the loss of the configured one stops nothing. They are also stored in a file, because a
// node may start while the configured one is unreachable.
type Servers struct {
	Endpoints *Endpoints
	Store     *model.Store
	// File stores the list, mode 0600. It holds only addresses. Empty for none.
	File string
	// Tell is called for a damaged or unwritable file, which stops nothing.
	Tell statefile.Tell
}

// Load reads the list from the file, if there is one. A damaged file is reported, and changes nothing.
func (s Servers) Load() {
	list := statefile.Recall(s.File, s.Tell, func(list []netip.AddrPort) error {
		if slices.ContainsFunc(list, func(a netip.AddrPort) bool { return !a.IsValid() || a.Port() == 0 }) {
			return errors.New("an address is empty")
		}
		return nil
	})
	if len(list) > 0 {
		s.Endpoints.Set(list)
	}
}

// Run follows the EndpointSlices until ctx ends. An empty list is ignored: without an address the next list could not
// be read.
func (s Servers) Run(ctx context.Context) error {
	w, err := s.Store.Watch(model.ServiceKind | model.EndpointSliceKind)
	if err != nil {
		return err
	}
	defer w.Close()
	name := model.Name{Namespace: "default", Name: "kubernetes"}
	var last []netip.AddrPort
	for {
		snap, changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		if !changes.Has(model.ServiceKind, name) {
			continue
		}
		list := servers(snap, name)
		if len(list) == 0 || slices.Equal(list, last) {
			continue
		}
		last = list
		s.Endpoints.Set(list)
		if s.File != "" {
			statefile.Keep(s.File, list, s.Tell)
		}
	}
}

func servers(snap model.Snapshot, name model.Name) (list []netip.AddrPort) {
	for slice := range snap.EndpointSlices(name) {
		for _, e := range slice.Endpoints {
			for _, p := range slice.Ports {
				if e.Ready && p.Protocol == model.TCP {
					list = append(list, netip.AddrPortFrom(e.Addr, p.Port))
				}
			}
		}
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return slices.Compact(list)
}
