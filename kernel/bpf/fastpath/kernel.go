package fastpath

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/namespace"
)

// programName is the name of the program in the kernel, by which it is found again.
const programName = "wl_fastpath"

// Kernel is the kernel of one node.
type Kernel struct {
	// NSFD is the descriptor of the network namespace of the node; 0 for that of this process.
	NSFD int

	// mu protects loaded against Redirected.
	mu     sync.Mutex
	loaded *ebpf.Collection
	id     ebpf.ProgramID
	have   content

	permits permits
}

var _ Conn = (*Kernel)(nil)

// Possible implements Conn.
func (k *Kernel) Possible() error {
	if err := namespace.Do(k.NSFD, func() error { _, err := attached(loopback); return err }); err != nil {
		return fmt.Errorf("%w: no tcx hook: %w", ErrUnsupported, err)
	}
	c, err := load()
	if err != nil {
		return err
	}
	c.Close()
	return nil
}

// loopback is the index of the loopback in each network namespace.
const loopback = 1

func load() (*ebpf.Collection, error) {
	spec, err := loadProgram()
	if err == nil {
		err = spec.Variables["seed"].Set(rand.Uint32())
	}
	if err != nil {
		return nil, fmt.Errorf("fast path: %w", err)
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return c, nil
}

// Set implements Conn. Maps are narrowed before programs are attached, and widened after links of new pods have them.
func (k *Kernel) Set(_ context.Context, s State) (r Report, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded == nil {
		c, err := load()
		if err != nil {
			return r, err
		}
		info, err := c.Programs[programName].Info()
		if err != nil {
			c.Close()
			return r, fmt.Errorf("fast path: %w", err)
		}
		k.loaded, k.have = c, content{}
		k.id, _ = info.ID()
	}
	err = namespace.Do(k.NSFD, func() error { r, err = k.set(s); return err })
	if err != nil {
		return r, fmt.Errorf("fast path: %w", err)
	}
	return r, nil
}

func (k *Kernel) set(s State) (Report, error) {
	want, r, err := read(s)
	if err != nil {
		return r, err
	}
	changed, err := k.write(want)
	if changed || err != nil {
		err = errors.Join(err, k.permits.revoke(k.loaded.Maps[generationName]))
	}
	if err != nil {
		return r, err
	}
	links, err := indexes()
	if err != nil {
		return r, err
	}
	var errs []error
	for _, at := range links {
		if want.links[at] {
			errs = append(errs, ignoreGone(k.attach(at)))
		} else {
			errs = append(errs, ignoreGone(detach(at)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return r, err
	}
	return r, k.permits.allow(k.loaded.Maps[generationName])
}

// ignoreGone returns nil for a link that was removed meanwhile.
func ignoreGone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// attached returns the programs of the fast path at a link.
func attached(at int) (ours []ebpf.ProgramID, err error) {
	found, err := link.QueryPrograms(link.QueryOptions{Target: at, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return nil, err
	}
	for _, p := range found.Programs {
		program, err := ebpf.NewProgramFromID(p.ID)
		if err != nil {
			continue // it was detached meanwhile
		}
		info, err := program.Info()
		if err == nil && info.Name == programName {
			ours = append(ours, p.ID)
		}
		_ = program.Close()
	}
	return ours, nil
}

// attach attaches the program of this process to a link, or replaces that of an earlier one.
func (k *Kernel) attach(at int) error {
	ours, err := attached(at)
	if err != nil {
		return fmt.Errorf("link %d: %w", at, err)
	}
	if slices.Contains(ours, k.id) {
		return nil
	}
	o := link.RawAttachProgramOptions{Target: at, Program: k.loaded.Programs[programName],
		Attach: ebpf.AttachTCXIngress}
	if len(ours) > 0 {
		old, err := ebpf.NewProgramFromID(ours[0])
		if err != nil {
			return fmt.Errorf("link %d: %w", at, err)
		}
		defer old.Close()
		o.Anchor = link.ReplaceProgram(old)
	}
	if err := link.RawAttachProgram(o); err != nil {
		return fmt.Errorf("attach to link %d: %w", at, err)
	}
	return nil
}

// detach removes the program from a link.
func detach(at int) error {
	ours, err := attached(at)
	if err != nil {
		return fmt.Errorf("link %d: %w", at, err)
	}
	for _, id := range ours {
		program, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue
		}
		err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: at, Program: program,
			Attach: ebpf.AttachTCXIngress})
		_ = program.Close()
		if err != nil {
			return fmt.Errorf("detach from link %d: %w", at, err)
		}
	}
	return nil
}

// Redirected implements Conn.
func (k *Kernel) Redirected() (out Redirected, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded == nil {
		return out, nil
	}
	for way, sum := range map[uint32]*uint64{wayPeer: &out.Local, wayNeighbour: &out.Remote, countBegun: &out.Begun,
		countDropped: &out.Dropped} {
		var each []uint64
		if err := k.loaded.Maps["redirected"].Lookup(way, &each); err != nil {
			return out, fmt.Errorf("fast path: counters: %w", err)
		}
		for _, n := range each {
			*sum += n
		}
	}
	return out, nil
}

// Remove implements Conn.
func (k *Kernel) Remove(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.permits.close()
	err := namespace.Do(k.NSFD, func() error {
		began, err := stopBeginning()
		if began {
			time.Sleep(handshake)
		}
		links, err2 := indexes()
		errs := []error{err, err2}
		for _, at := range links {
			errs = append(errs, ignoreUnsupported(ignoreGone(detach(at))))
		}
		return errors.Join(errs...)
	})
	if k.loaded != nil {
		k.loaded.Close()
		k.loaded = nil
	}
	if err != nil {
		return fmt.Errorf("fast path: %w", err)
	}
	return nil
}

// ignoreUnsupported returns nil if the kernel has no tcx, and so no program there.
func ignoreUnsupported(err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// Remains implements Conn.
func (k *Kernel) Remains(context.Context) (out []string, err error) {
	err = namespace.Do(k.NSFD, func() error {
		links, err := names()
		if err != nil {
			return err
		}
		for at, name := range links {
			ours, err := attached(at)
			if err = ignoreUnsupported(ignoreGone(err)); err != nil {
				return err
			}
			if len(ours) > 0 {
				out = append(out, "program "+programName+" at link "+name)
			}
		}
		return nil
	})
	slices.Sort(out)
	return out, err
}
