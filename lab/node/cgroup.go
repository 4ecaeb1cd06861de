package node

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// cgroupName is the lab's group in every hierarchy; nodes have groups below it.
	cgroupName = "wayleave-lab"
	// leafName is the version 2 group of a node's own programs.
	leafName = "init"
)

// hierarchy is a mounted cgroup hierarchy: that of version 2, or one of version 1 with its controllers. A machine may
// have both.
type hierarchy struct {
	Path        string // where it is mounted
	V2          bool
	Controllers []string // of version 1, or a name= option
}

// hierarchies finds the mounted hierarchies, each once.
func hierarchies() ([]hierarchy, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	defer file.Close()
	all, err := parseMountinfo(file)
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	if len(all) == 0 {
		return nil, errors.New("cgroups: no hierarchy is mounted below " + cgroupRoot)
	}
	return all, nil
}

// parseMountinfo parses the format of proc_pid_mountinfo(5).
func parseMountinfo(r io.Reader) ([]hierarchy, error) {
	var all []hierarchy
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(rest) < 3 {
			continue
		}
		path := fields[4]
		if path != cgroupRoot && !strings.HasPrefix(path, cgroupRoot+"/") {
			continue
		}
		h := hierarchy{Path: path}
		switch rest[0] {
		case "cgroup2":
			h.V2 = true
		case "cgroup":
			h.Controllers = controllers(rest[2])
		default:
			continue
		}
		if !slices.ContainsFunc(all, func(o hierarchy) bool { return o.Path == path }) {
			all = append(all, h)
		}
	}
	return all, lines.Err()
}

// controllers extracts the controllers from a version 1 mount's options.
func controllers(options string) []string {
	var all []string
	for option := range strings.SplitSeq(options, ",") {
		switch option {
		case "rw", "ro", "xattr", "clone_children", "noprefix", "none", "seclabel":
			continue
		}
		if !strings.HasPrefix(option, "release_agent=") {
			all = append(all, option)
		}
	}
	return all
}

// join moves the calling process into the node's group of every hierarchy.
func join(all []hierarchy, name string) error {
	for _, h := range all {
		dir := h.Path
		for _, part := range []string{cgroupName, name} {
			parent := dir
			dir = filepath.Join(dir, part)
			if err := h.make(parent, dir); err != nil {
				return fmt.Errorf("cgroup %s: %w", dir, err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	return nil
}

// make creates a group for processes, with the controllers of its parent.
func (h hierarchy) make(parent, dir string) error {
	if h.V2 {
		if err := delegate(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if !slices.Contains(h.Controllers, "cpuset") {
		return nil
	}
	// In version 1 a new group has no processor and no memory.
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// delegate enables all controllers of a version 2 group for its children. Some cannot be enabled (a machine with
// version 1 has most of them there); the kubelet requires memory, if it exists at all.
func delegate(dir string) error {
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(available)) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0o644)
		if err != nil && (name == "memory" || name == "cpu" || name == "pids") {
			return fmt.Errorf("controller %s cannot be delegated (are there processes in this very group?): %w", name,
				err)
		}
	}
	return nil
}

// mountCgroups mounts the hierarchies as the node sees them: its own group is the root. The calling process must have a
// cgroup namespace of its own.
func mountCgroups(all []hierarchy) error {
	if len(all) > 1 || all[0].Path != cgroupRoot {
		if err := mount("tmpfs", cgroupRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV,
			"mode=755"); err != nil {
			return err
		}
	}
	for _, h := range all {
		if err := os.MkdirAll(h.Path, 0o755); err != nil {
			return err
		}
		kind, options := "cgroup2", ""
		if !h.V2 {
			kind, options = "cgroup", strings.Join(h.Controllers, ",")
			if strings.HasPrefix(options, "name=") {
				options = "none," + options
			}
		}
		if err := mount("cgroup", h.Path, kind, unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, options); err != nil {
			return err
		}
		if err := h.settle(); err != nil {
			return err
		}
	}
	return nil
}

// settle adds what the node's programs expect of a root: names for each of the controllers that are mounted together,
// and in version 2 no process in the root itself, which could not have child groups with controllers otherwise.
func (h hierarchy) settle() error {
	if h.V2 {
		leaf := filepath.Join(h.Path, leafName)
		if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return err
		}
		return delegate(h.Path)
	}
	if len(h.Controllers) < 2 {
		return nil
	}
	for _, name := range h.Controllers {
		link := filepath.Join(cgroupRoot, name)
		if err := os.Symlink(filepath.Base(h.Path), link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// RemoveCgroups removes the lab's groups from every hierarchy. Their processes must have been killed; they may take a
// moment to end.
func RemoveCgroups() error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range all {
		errs = append(errs, removeGroup(filepath.Join(h.Path, cgroupName)))
	}
	return errors.Join(errs...)
}

func removeGroup(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	slices.Reverse(dirs) // children first
	deadline := time.Now().Add(10 * time.Second)
	for _, dir := range dirs {
		for {
			err := unix.Rmdir(dir)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				return fmt.Errorf("cgroup %s: %w", dir, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// GroupFiles returns the files to which a process of this machine writes 0 to join a running node's groups.
func GroupFiles(name string) ([]string, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var files []string
	for _, h := range all {
		dir := filepath.Join(h.Path, cgroupName, name)
		if h.V2 {
			dir = filepath.Join(dir, leafName)
		}
		files = append(files, filepath.Join(dir, "cgroup.procs"))
	}
	return files, nil
}
