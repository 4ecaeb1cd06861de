// Package memlimit sets the limit of Go's collector to the container's memory (GOMEMLIMIT), so that a process near its
// limit collects sooner, and is not killed.
package memlimit

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// Set sets the collector's limit to a part of the limit of this process's cgroup, v1 or v2, and returns it in bytes. It
// returns 0 if the cgroup has none or the environment has GOMEMLIMIT, which takes precedence.
func Set(numerator, denominator int64) (int64, error) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return 0, nil
	}
	most, err := Limit(os.DirFS("/"))
	if err != nil || most == 0 {
		return 0, err
	}
	part := most / denominator * numerator
	debug.SetMemoryLimit(part)
	return part, nil
}

// Limit returns the smallest limit in bytes of the cgroup of this process and of its ancestors, as far as they are
// mounted; 0 for none. root is the file system, from "/".
func Limit(root fs.FS) (int64, error) {
	raw, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return 0, fmt.Errorf("memory limit: %w", err)
	}
	least := int64(math.MaxInt64)
	for line := range strings.Lines(string(raw)) {
		// "0::/path" is v2; "9:memory:/path" is v1 (cgroups(7)).
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, group, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		mount, file := "sys/fs/cgroup", "memory.max"
		if controllers != "" {
			if !hasMemory(controllers) {
				continue
			}
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		}
		n, err := leastAbove(root, mount, group, file)
		if err != nil {
			return 0, fmt.Errorf("memory limit: %w", err)
		}
		least = min(least, n)
	}
	if least >= none {
		return 0, nil
	}
	return least, nil
}

// none and larger values mean no limit: v1 uses the largest multiple of a page.
const none = 1 << 62

func hasMemory(controllers string) bool {
	for c := range strings.SplitSeq(controllers, ",") {
		if c == "memory" {
			return true
		}
	}
	return false
}

// leastAbove reads a group and all its ancestors. In a container the mount is often the group itself, and the path is
// that of the host: missing files are skipped.
func leastAbove(root fs.FS, mount, group, file string) (int64, error) {
	least := int64(math.MaxInt64)
	for dir := path.Clean("/" + group); ; dir = path.Dir(dir) {
		raw, err := fs.ReadFile(root, path.Join(mount, dir, file))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return 0, err
		default:
			text := strings.TrimSpace(string(raw))
			if text == "max" {
				break
			}
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil || n <= 0 {
				return 0, fmt.Errorf("%s: %q is not a number of bytes", path.Join("/", mount, dir, file), text)
			}
			least = min(least, n)
		}
		if dir == "/" {
			return least, nil
		}
	}
}
