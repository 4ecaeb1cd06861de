package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Bind mounts a folder of the machine at a path of the node.
type Bind struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Machine is the file system and the cgroups of a node.
type Machine struct {
	Cgroup string `json:"cgroup"` // name below wayleave-lab in every hierarchy
	Tmpfs  string `json:"tmpfs"`  // an empty folder to mount a tmpfs on
	// Private are further folders of which the node has a copy-on-write copy.
	Private []string `json:"private,omitempty"`
	// Keep are folders that stay visible, although a parent is replaced.
	Keep  []string          `json:"keep"`
	Binds []Bind            `json:"binds"`
	Files map[string]string `json:"files"` // path → content
}

// private are folders of which a node has a copy-on-write copy.
var private = []string{"/etc", "/opt", "/var"}

// volatile are folders that are empty in a node.
var volatile = []string{"/run", "/tmp"}

// pretended are the machine-wide kernel settings that a kubelet changes. A node has files with these contents in their
// place.
var pretended = map[string]string{
	"vm/overcommit_memory":      "1\n",
	"vm/panic_on_oom":           "0\n",
	"kernel/panic":              "10\n",
	"kernel/panic_on_oops":      "1\n",
	"kernel/keys/root_maxkeys":  "1000000\n",
	"kernel/keys/root_maxbytes": "25000000\n",
}

// mount creates the file system of the node in the mount namespace of the calling process, which must be its own.
func (m *Machine) mount(cgroups []hierarchy) error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	// The new mounts hide the folders that the node is made of, so these are opened first.
	held, err := m.hold()
	if err != nil {
		return err
	}
	defer held.close()
	for _, step := range []func() error{
		func() error { return mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, "") },
		func() error { return mountSys(cgroups) },
		func() error { return m.copyOnWrite() },
		func() error { return m.pretend() },
		func() error { return empty() },
		func() error { return m.bind(held) },
		func() error { return m.write() },
		func() error { return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// held are open folders by their path.
type held map[string]int

func (h held) close() {
	for _, fd := range h {
		unix.Close(fd)
	}
}

func (m *Machine) hold() (held, error) {
	all := held{}
	paths := append([]string{}, m.Keep...)
	for _, b := range m.Binds {
		paths = append(paths, b.From)
	}
	for _, path := range paths {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			all.close()
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all[path] = fd
	}
	return all, nil
}

// mountSys gives the node a /sys with its own network devices and cgroups.
func mountSys(cgroups []hierarchy) error {
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, ""); err != nil {
		return err
	}
	if err := mountCgroups(cgroups); err != nil {
		return err
	}
	if err := mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=700"); err != nil {
		return err
	}
	// Not all kernels have these, and only debugging needs them.
	_ = mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, "")
	_ = mount("debugfs", "/sys/kernel/debug", "debugfs", 0, "")
	return nil
}

// copyOnWrite mounts an overlay over each private folder. Writes go to memory: folders that grow are bind mounts of the
// disk.
func (m *Machine) copyOnWrite() error {
	if err := os.MkdirAll(m.Tmpfs, 0o755); err != nil {
		return err
	}
	if err := mount("tmpfs", m.Tmpfs, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, dir := range append(m.Private, private...) {
		upper, work := filepath.Join(m.Tmpfs, dir, "upper"), filepath.Join(m.Tmpfs, dir, "work")
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.MkdirAll(upper, 0o755),
			os.MkdirAll(work, 0o755)); err != nil {
			return err
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
		if err := mount("overlay", dir, "overlay", 0, options); err != nil {
			return err
		}
	}
	return nil
}

// pretend hides machine-wide kernel settings.
func (m *Machine) pretend() error {
	for name, value := range pretended {
		real := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(real); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		file := filepath.Join(m.Tmpfs, "sysctl", strings.ReplaceAll(name, "/", "."))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
			return err
		}
		if err := mount(file, real, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

func empty() error {
	for _, dir := range volatile {
		mode := "mode=755"
		if dir == "/tmp" {
			mode = "mode=1777"
		}
		if err := mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, mode); err != nil {
			return err
		}
	}
	return os.MkdirAll("/run/netns", 0o755)
}

func (m *Machine) bind(held held) error {
	binds := m.Binds
	for _, path := range m.Keep {
		binds = append(binds, Bind{From: path, To: path})
	}
	for _, b := range binds {
		if err := os.MkdirAll(b.To, 0o755); err != nil {
			return err
		}
		from := fmt.Sprintf("/proc/self/fd/%d", held[b.From])
		if err := mount(from, b.To, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
	}
	return nil
}

// write writes the node's own files.
func (m *Machine) write() error {
	for name, text := range m.Files {
		// The path may be a symbolic link.
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s %s at %s: %w", kind, source, target, err)
	}
	return nil
}
