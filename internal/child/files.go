package child

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lockFiles removes this thread's, and its later programs', access to the file system except this program, its
// libraries, and the process's own entries in /proc (Landlock, kernel 5.13). It returns false if the kernel has no
// Landlock, or has it disabled. no_new_privs must be set.
//
// Without capabilities the process is still the agent's user, whose files it must not access.
func lockFiles() (bool, error) {
	const (
		read = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
		run  = read | unix.LANDLOCK_ACCESS_FS_EXECUTE
		// all are the rights of the first version of Landlock: later kernels accept them as well.
		all = 1<<13 - 1
	)
	attr := unix.LandlockRulesetAttr{Handled_access_fs: all}
	// The kernel accepts a shorter structure: that of the first version is one number.
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)),
		unsafe.Sizeof(attr.Handled_access_fs), 0)
	switch {
	case errno == unix.ENOSYS || errno == unix.EOPNOTSUPP:
		return false, nil
	case errno != 0:
		return false, fmt.Errorf("landlock: %w", errno)
	}
	defer unix.Close(int(fd))
	for _, p := range []struct {
		path   string
		access uint64
	}{
		{"/proc/self/exe", run &^ unix.LANDLOCK_ACCESS_FS_READ_DIR}, {"/proc/self", read},
		{"/etc/ld.so.cache", unix.LANDLOCK_ACCESS_FS_READ_FILE},
		{"/lib", run}, {"/lib64", run}, {"/usr/lib", run},
	} {
		if err := allow(int(fd), p.path, p.access); err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, fmt.Errorf("landlock: %s: %w", p.path, err)
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return false, fmt.Errorf("landlock: restrict: %w", errno)
	}
	return true, nil
}

func allow(ruleset int, path string, access uint64) error {
	f, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(f)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
