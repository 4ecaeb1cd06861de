// Package rlimit computes how many files a process may use for one purpose.
package rlimit

import "golang.org/x/sys/unix"

// Files returns how many of n files may be open for one purpose, which gets at most one part out of parts of the
// process's limit, and at least 16.
func Files(n, parts int) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return n
	}
	return int(min(uint64(n), max(limit.Cur/uint64(parts), 16)))
}
