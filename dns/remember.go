package dns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Remember has the feed give the sockets of the place that a Placement left in a file,
// until a place is known: an agent that starts while the API server is away has no
// other way to know where a server that starts then should listen. No file is no error;
// a broken one is an error that names it.
func Remember(file string, f *Feed) error {
	place, err := readPlace(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	f.listenedBefore(sockets(place))
	return nil
}

func readPlace(file string) (place Place, err error) {
	raw, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(raw, &place)
	}
	if err != nil {
		return Place{}, fmt.Errorf("where DNS was served: %s: %w", file, err)
	}
	return place, nil
}

// remember writes the place, when the file has another one.
func (p *Placement) remember(place Place) error {
	if p.File == "" {
		return nil
	}
	old, err := readPlace(p.File)
	if err == nil && slices.Equal(old.VIPs, place.VIPs) && slices.Equal(old.Nodes, place.Nodes) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(p.File), 0o755); err != nil {
		return fmt.Errorf("remember where DNS is served: %w", err)
	}
	if err := writeFile(p.File, place); err != nil {
		return fmt.Errorf("remember where DNS is served: %w", err)
	}
	return nil
}
