package sandbox

import (
	"fmt"
	"os"
	"syscall"
)

// Enter makes the node's file system that of this process, whose program needs no file of its own.
func Enter(root string) error {
	if root == "/" {
		return nil
	}
	if err := syscall.Chroot(root); err != nil {
		return fmt.Errorf("--root %s: %w", root, err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if _, err := os.Stat("/proc/self"); err != nil {
		return fmt.Errorf("--root %s: no file system of a node: %w", root, err)
	}
	return nil
}
