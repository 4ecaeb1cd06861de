package fastpath

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"wayleave.dev/kernel/namespace"
)

// generationName is the name of the map with the generation, of each version of the program.
const generationName = "generation"

// handshake is how long connections that the programs began get to become established, before the programs are removed.
const handshake = 200 * time.Millisecond

// permits is the generation of what the programs know of the stack's decisions. It has a lock of its own: a change of
// rules does not wait for a change of links.
type permits struct {
	mu         sync.Mutex
	generation uint64
	// open is the map of the programs of this process while they may begin connections.
	open *ebpf.Map
	// alone means that programs of earlier processes begin none.
	alone bool
}

// Revoke implements Conn.
func (k *Kernel) Revoke() error {
	k.permits.mu.Lock()
	alone := k.permits.alone
	k.permits.mu.Unlock()
	if !alone {
		if err := namespace.Do(k.NSFD, func() error { _, err := stopBeginning(); return err }); err != nil {
			return err
		}
	}
	k.permits.mu.Lock()
	defer k.permits.mu.Unlock()
	k.permits.alone = true
	return k.permits.write(k.permits.open)
}

// write raises the generation, in a map too if there is one.
func (p *permits) write(m *ebpf.Map) error {
	p.generation++
	if m == nil {
		return nil
	}
	if err := m.Put(uint32(0), p.generation); err != nil {
		return fmt.Errorf("fast path: new connections: %w", err)
	}
	return nil
}

// revoke is for changes of pods and links.
func (p *permits) revoke(m *ebpf.Map) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		return nil
	}
	return p.write(m)
}

// allow has the programs of this process begin connections. They have replaced those of earlier processes.
func (p *permits) allow(m *ebpf.Map) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == m {
		return nil
	}
	p.open, p.alone = m, true
	return p.write(m)
}

// close forgets the map of the programs of this process, which will be closed.
func (p *permits) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open, p.alone = nil, false
}

// stopBeginning has all programs in the namespace of the thread leave new connections to the stack, and reports whether
// one did not. It looks at each link: programs belong to the links.
func stopBeginning() (began bool, err error) {
	links, err := indexes()
	if err != nil {
		return false, err
	}
	seen := map[ebpf.ProgramID]bool{}
	var errs []error
	for _, at := range links {
		ours, err := attached(at)
		if err != nil {
			continue // a link that is gone, or a kernel without tcx
		}
		for _, id := range ours {
			if seen[id] {
				continue
			}
			seen[id] = true
			did, err := stop(id)
			began, errs = began || did, append(errs, err)
		}
	}
	return began, errors.Join(errs...)
}

// stop has one program leave new connections to the stack.
func stop(id ebpf.ProgramID) (began bool, err error) {
	defer func() {
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, fs.ErrNotExist) {
			err = nil // it was detached meanwhile
		}
		if err != nil {
			err = fmt.Errorf("fast path: new connections of program %d: %w", id, err)
		}
	}()
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return false, err
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return false, err
	}
	list, _ := info.MapIDs()
	for _, id := range list {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return began, err
		}
		began, err = stopMap(m)
		if err := errors.Join(err, m.Close()); err != nil || began {
			return began, err
		}
	}
	return false, nil
}

// stopMap writes the generation 0 if the map has one.
func stopMap(m *ebpf.Map) (began bool, err error) {
	info, err := m.Info()
	if err != nil || info.Name != generationName {
		return false, err
	}
	var current uint64
	if err := m.Lookup(uint32(0), &current); err != nil || current == 0 {
		return false, err
	}
	return true, m.Put(uint32(0), uint64(0))
}
