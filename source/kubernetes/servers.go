package kubernetes

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"wayleave.dev/internal/statefile"
	"wayleave.dev/model"
)

// Servers keeps the addresses of all API servers, as the cluster itself publishes
// them in the EndpointSlices of default/kubernetes, so that the loss of the
// configured one stops nothing. They are in a file too: a node may start while that
// one is away.
type Servers struct {
	Endpoints *Endpoints
	Store     *model.Store
	// File remembers the list, 0600; it holds addresses only. Empty for none.
	File string
	// Tell is told of a file that is damaged or cannot be written, which stops nothing.
	Tell statefile.Tell
}

// Load takes the list of the file, when there is one. A broken file is told of, and changes nothing.
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

// Run follows the EndpointSlices until ctx ends. A list that becomes empty is not
// believed: then nobody could tell of the next one.
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
