package sockets

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/namespace"
)

// Version is that of the maps' layout. Maps of another version are never reused.
const Version = 1

// folders of all versions, below the folder of Wayleave.
const folderPrefix = "sockets-"

// Kernel is the kernel of one node.
type Kernel struct {
	// NSFD is the descriptor of the network namespace of the node; 0 for that of this process.
	NSFD int
	// Cgroup is a cgroup of version 2: the programs translate sockets of its processes and of those below it.
	Cgroup string
	// Folder is a folder of a BPF file system, in which maps and links are pinned.
	Folder string

	mu     sync.Mutex
	loaded *ebpf.Collection
	// have are the frontends in the maps; nil if they have not been read.
	have map[Key]state
	// used are the generations of have; next is the one to try first.
	used map[uint32]bool
	next uint32
	node Node
	pods map[podKey]bool
}

// state is a frontend in the maps.
type state struct {
	Frontend
	generation uint32
}

var _ Conn = (*Kernel)(nil)

// hook is a program and where it is attached.
type hook struct {
	program string
	attach  ebpf.AttachType
	// answers means that the program serves sockets that are translated already: it is removed last.
	answers bool
}

// hooks are in the order in which they are attached: what names the VIP in answers comes before what translates.
func hooks() []hook {
	return []hook{
		{"wl_peer4", ebpf.AttachCgroupInet4GetPeername, true},
		{"wl_peer6", ebpf.AttachCgroupInet6GetPeername, true},
		{"wl_recvmsg4", ebpf.AttachCGroupUDP4Recvmsg, true},
		{"wl_recvmsg6", ebpf.AttachCGroupUDP6Recvmsg, true},
		{"wl_connect4", ebpf.AttachCGroupInet4Connect, false},
		{"wl_connect6", ebpf.AttachCGroupInet6Connect, false},
		{"wl_sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, false},
		{"wl_sendmsg6", ebpf.AttachCGroupUDP6Sendmsg, false},
		{"wl_learn", ebpf.AttachCGroupSockOps, false},
	}
}

func (k *Kernel) folder() string { return filepath.Join(k.Folder, fmt.Sprint(folderPrefix, Version)) }

func (k *Kernel) linkPath(h hook) string { return filepath.Join(k.folder(), "link_"+h.program) }

// Attach implements Conn.
func (k *Kernel) Attach(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	cgroup, err := openCgroup(k.Cgroup)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	if err := k.load(); err != nil {
		return err
	}
	for _, h := range hooks() {
		if err := k.attach(h, cgroup); err != nil {
			return fmt.Errorf("sockets: %s at cgroup %s: %w", h.attach, k.Cgroup, err)
		}
	}
	return k.removeFolders(false)
}

// load loads programs and maps once; pinned maps are reused. It restores pins that were deleted.
func (k *Kernel) load() error {
	if err := isBPFFS(k.Folder); err != nil {
		return err
	}
	if err := os.MkdirAll(k.folder(), 0o700); err != nil {
		return fmt.Errorf("sockets: %w", err)
	}
	if k.loaded == nil {
		spec, err := loadProgram()
		if err != nil {
			return fmt.Errorf("sockets: %w", err)
		}
		for _, m := range spec.Maps {
			m.Pinning = ebpf.PinByName
		}
		opt := ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: k.folder()}}
		c, err := ebpf.NewCollectionWithOptions(spec, opt)
		if errors.Is(err, ebpf.ErrMapIncompatible) {
			// Maps of this version that are not as its programs need them: nftables serves until they are filled.
			if err := errors.Join(os.RemoveAll(k.folder()), os.Mkdir(k.folder(), 0o700)); err != nil {
				return fmt.Errorf("sockets: %w", err)
			}
			c, err = ebpf.NewCollectionWithOptions(spec, opt)
		}
		if err != nil {
			return fmt.Errorf("sockets: load: %w", err)
		}
		k.loaded, k.have = c, nil
	}
	for name, m := range k.loaded.Maps {
		path := filepath.Join(k.folder(), name)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		// A clone has no record of the pin that was deleted.
		clone, err := m.Clone()
		if err == nil {
			err = errors.Join(clone.Pin(path), clone.Close())
		}
		if err != nil {
			return fmt.Errorf("sockets: pin map %s: %w", name, err)
		}
	}
	return k.writeNode()
}

// attach updates the program of a pinned link that is still attached, or replaces it by a new link.
func (k *Kernel) attach(h hook, cgroup *os.File) error {
	program := k.loaded.Programs[h.program]
	if program == nil {
		return fmt.Errorf("no program %s", h.program)
	}
	path := k.linkPath(h)
	if old, err := link.LoadPinnedLink(path, nil); err == nil {
		defer old.Close()
		if isAttached(old, cgroup) {
			return old.Update(program)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(cgroup.Fd()), Program: program, Attach: h.attach})
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Pin(path)
}

// isAttached reports whether a link is attached to the cgroup.
func isAttached(l link.Link, cgroup *os.File) bool {
	var st unix.Stat_t
	info, err := l.Info()
	if err != nil || unix.Fstat(int(cgroup.Fd()), &st) != nil {
		return false
	}
	c := info.Cgroup()
	return c != nil && c.CgroupId == st.Ino // the identity of a cgroup is the number of its inode
}

// Watch implements Conn.
func (k *Kernel) Watch(ctx context.Context) (<-chan struct{}, error) {
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		for tick(ctx, watchEvery) {
			if k.isComplete() {
				continue
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out, nil
}

// isComplete reports whether each link is pinned and attached, and each map is pinned. Before the first Attach, and
// after Remove, there is nothing to miss.
func (k *Kernel) isComplete() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded == nil {
		return true
	}
	cgroup, err := openCgroup(k.Cgroup)
	if err != nil {
		return false
	}
	defer cgroup.Close()
	for _, h := range hooks() {
		l, err := link.LoadPinnedLink(k.linkPath(h), nil)
		if err != nil {
			return false
		}
		attached := isAttached(l, cgroup)
		_ = l.Close()
		if !attached {
			return false
		}
	}
	for name := range k.loaded.Maps {
		if _, err := os.Stat(filepath.Join(k.folder(), name)); err != nil {
			return false
		}
	}
	return true
}

// cookie returns the cookie of the network namespace, by which programs know it.
func cookie(nsfd int) (out uint64, err error) {
	err = namespace.Do(nsfd, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		out, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("sockets: cookie of the network namespace: %w", err)
	}
	return out, nil
}
