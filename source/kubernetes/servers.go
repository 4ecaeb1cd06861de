package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"

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
}

// Load takes the list of the file, when there is one. A broken file is an error
// that names it, and changes nothing.
func (s Servers) Load() error {
	raw, err := os.ReadFile(s.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var list []netip.AddrPort
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil {
		return fmt.Errorf("API servers known from before: %s: %w", s.File, err)
	}
	s.Endpoints.Set(list)
	return nil
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
		if _, ok := changes.Services[name]; !ok {
			continue
		}
		list := servers(snap, name)
		if len(list) == 0 || slices.Equal(list, last) {
			continue
		}
		last = list
		s.Endpoints.Set(list)
		if s.File == "" {
			continue
		}
		if err := s.save(list); err != nil {
			return err
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

func (s Servers) save(list []netip.AddrPort) error {
	raw, err := json.Marshal(list)
	if err == nil {
		if err = os.WriteFile(s.File+".new", raw, 0o600); err == nil {
			err = os.Rename(s.File+".new", s.File)
		}
	}
	if err != nil {
		return fmt.Errorf("remember the API servers: %w", err)
	}
	return nil
}
