// Package sysctl sets kernel parameters of the network, and remembers what they
// were, so that an uninstall can put them back.
package sysctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// Set is the parameters below one folder, with a memory.
type Set struct {
	// Root is /proc/sys/net, or where that is mounted writable.
	Root string
	// State is the file of the values from before.
	State string
}

// Ensure sets a parameter such as "ipv4/ip_forward". The value from before is on
// disk before it is changed.
func (s Set) Ensure(name, value string) error {
	file := filepath.Join(s.Root, name)
	raw, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	have := strings.TrimSpace(string(raw))
	if have == value {
		return nil
	}
	before, err := s.load()
	if err != nil {
		return err
	}
	if _, ok := before[name]; !ok {
		before[name] = have
		if err := s.save(before); err != nil {
			return err
		}
	}
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}

// Restore puts all remembered values back and forgets them.
func (s Set) Restore() error {
	before, err := s.load()
	if err != nil {
		return err
	}
	var errs []error
	for name, value := range maps.All(before) {
		// A link that is gone took its values along.
		if err := os.WriteFile(filepath.Join(s.Root, name), []byte(value), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("sysctl: %w", err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(s.State); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}

func (s Set) load() (map[string]string, error) {
	out := map[string]string{}
	raw, err := os.ReadFile(s.State)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("sysctl: values from before: %s: %w", s.State, err)
	}
	return out, nil
}

func (s Set) save(values map[string]string) error {
	raw, err := json.Marshal(values)
	if err == nil {
		if err = os.WriteFile(s.State+".new", raw, 0o600); err == nil {
			err = os.Rename(s.State+".new", s.State)
		}
	}
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}
