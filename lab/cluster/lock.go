// Package cluster brings a complete lab up and takes it down again.
package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"syscall"

	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/process"
)

// lockName is global to the machine: namespaces and cgroups of labs have fixed names, so there can be one lab at a
// time.
const lockName = "@wayleave-lab"

// lock ensures that one command at a time changes a lab. The lock is an abstract unix socket: the kernel releases it
// when its holder ends, for any reason, and it leaves no file.
func lock(name string) (unlock func(), err error) {
	listener, err := net.Listen("unix", name)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, errors.New(`another "lab up" or "lab down" is running; wait for it to end`)
	}
	if err != nil {
		return nil, fmt.Errorf("lab: lock: %w", err)
	}
	return func() { listener.Close() }, nil
}

// others refuses to continue if a lab with other folders is up: its namespaces have the same names.
func (l *Lab) others() error {
	for _, name := range []string{fabric.Bridge, fabric.Control} {
		found, err := process.InNamespace(fabric.File(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, r := range found {
			program := r.Program()
			if strings.HasSuffix(program, selfName) && program != l.self() {
				return fmt.Errorf("a lab with its state in %s is up; there can be one at a time",
					filepath.Clean(strings.TrimSuffix(program, selfName)))
			}
		}
	}
	return nil
}
