// Package sysctl sets kernel parameters of the network, and records their previous values, so that an uninstall can
// restore them.
package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/statefile"
)

// Set is the parameters below one folder, with a memory.
type Set struct {
	// Root is /proc/sys/net, or where that is mounted writable.
	Root string
	// State is the file of the previous values.
	State string
	// Tell is called when the file is damaged or cannot be written. The parameter is set regardless, since pods need
	// it, and Restore leaves it unchanged.
	Tell statefile.Tell
}

// Ensure sets a parameter such as "ipv4/ip_forward". Its previous value is on disk before it changes.
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
	s.remember(name, have)
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}

// Raise sets a parameter that is a number, such as "netfilter/nf_conntrack_max", unless it is that high already.
func (s Set) Raise(name string, least int) error {
	raw, err := os.ReadFile(filepath.Join(s.Root, name))
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	have, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return fmt.Errorf("sysctl: %s: %w", name, err)
	}
	if have >= least {
		return nil
	}
	return s.Ensure(name, strconv.Itoa(least))
}

// remember records the previous value, unless one is recorded. Several goroutines, and two agents during an upgrade,
// share the file: a lock on its folder keeps them from losing each other's values.
func (s Set) remember(name, have string) {
	if dir, err := os.Open(filepath.Dir(s.State)); err == nil {
		defer dir.Close() // and with it the lock
		_ = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
	}
	before := s.load()
	if _, ok := before[name]; !ok {
		before[name] = have
		statefile.Keep(s.State, before, s.Tell)
	}
}

// Restore puts all remembered values back and forgets them.
func (s Set) Restore() error {
	before := s.load()
	var errs []error
	for name, value := range maps.All(before) {
		// The values of a link that has gone went with it.
		if err := os.WriteFile(filepath.Join(s.Root, name), []byte(value), 0); err != nil &&
			!errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("sysctl: %w", err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := statefile.Remove(s.State); err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}

// load reads the previous values. A name that leads out of the folder counts as damage.
func (s Set) load() map[string]string {
	before := statefile.Recall(s.State, s.Tell, func(m map[string]string) error {
		for name := range m {
			if !filepath.IsLocal(name) {
				return fmt.Errorf("%q is not a parameter", name)
			}
		}
		return nil
	})
	if before == nil {
		before = map[string]string{}
	}
	return before
}
