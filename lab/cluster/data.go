package cluster

import (
	"fmt"
	"os/exec"

	"golang.org/x/sys/unix"
)

// prepareData ensures that containers' overlays can be on the data folder: if that is an overlay itself (a lab in a
// container), it gets a tmpfs.
func (u *up) prepareData() error {
	var s unix.Statfs_t
	if err := unix.Statfs(u.Dirs.Data, &s); err != nil {
		return fmt.Errorf("lab: %s: %w", u.Dirs.Data, err)
	}
	if s.Type != unix.OVERLAYFS_SUPER_MAGIC {
		return nil
	}
	u.Progress.Printf("%s is on an overlay, where images cannot be unpacked: using memory", u.Dirs.Data)
	if err := unix.Mount("tmpfs", u.Dirs.Data, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("lab: mount tmpfs at %s: %w", u.Dirs.Data, err)
	}
	return nil
}

// kubectlHint returns the advice for a user without kubectl; empty for one with it.
func kubectlHint(built string) string {
	if found, err := exec.LookPath("kubectl"); err == nil {
		if exec.Command(found, "version", "--client").Run() == nil {
			return ""
		}
	}
	return "export PATH=$PATH:" + built[:len(built)-len("/kubectl")]
}
