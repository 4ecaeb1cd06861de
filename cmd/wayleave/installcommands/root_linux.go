package installcommands

import (
	"fmt"
	"os"
	"syscall"
)

// enter makes the node's file system that of this process, whose program needs no file of its own.
func enter(root string) error {
	if root == "/" {
		return nil
	}
	if err := syscall.Chroot(root); err != nil {
		return fmt.Errorf("--root %s: %w", root, err)
	}
	return os.Chdir("/")
}
