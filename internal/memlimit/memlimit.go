// Package memlimit has the Go runtime collect sooner when the container's memory is nearly used: a limit that the
// runtime does not know ends the process by a kill.
package memlimit

import (
	"bufio"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// Set tells the runtime nine tenths of the limit of this process' control group, less what children are given, and
// returns it; 0: there is no limit, or the environment (GOMEMLIMIT) has one already. Children never take more than
// half.
func Set(children int64) int64 {
	if os.Getenv("GOMEMLIMIT") != "" {
		return 0
	}
	limit := Of(children, Limit("/"))
	if limit > 0 {
		debug.SetMemoryLimit(limit)
	}
	return limit
}

// Of is what of a limit is the runtime's own.
func Of(children, limit int64) int64 {
	if limit <= 0 {
		return 0
	}
	most := limit / 10 * 9
	return max(most-children, most/2)
}

// Limit is the least memory limit of the control groups that this process is in, in bytes; 0 is none. root is "/" but
// in tests.
func Limit(root string) int64 {
	f, err := os.Open(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return 0
	}
	defer f.Close()
	least := int64(0)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// hierarchy:controllers:path; of version 2 the controllers are empty.
		part := strings.SplitN(lines.Text(), ":", 3)
		if len(part) != 3 {
			continue
		}
		folder, file := "sys/fs/cgroup", "memory.max"
		if part[1] != "" {
			if !strings.Contains(","+part[1]+",", ",memory,") {
				continue
			}
			folder, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		}
		// The path may be that of the host, which is not there: the group itself is then the mount's root.
		for path := filepath.Clean("/" + part[2]); ; path = filepath.Dir(path) {
			if n := read(filepath.Join(root, folder, path, file)); n > 0 && (least == 0 || n < least) {
				least = n
			}
			if path == "/" {
				break
			}
		}
	}
	return least
}

// read is the number of a file; 0 when there is none, or it is as good as none.
func read(file string) int64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n >= math.MaxInt64/2 {
		return 0
	}
	return n
}
