package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wayleave.dev/internal/owner"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/kernel/nft"
	kubesource "wayleave.dev/source/kubernetes"
)

// Host is a node without an agent, as Uninstaller sees it.
type Host struct {
	// NetNS is the node's network namespace, and NFT its nftables.
	NetNS *os.File
	NFT   *nft.Kernel
	// Firewall is the host's own.
	Firewall firewall.Firewall
	Dirs
}

// ThisHost is the host that the program runs on.
func ThisHost() (*Host, error) {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	return NewHost(ns, hostDirs().of(kubesource.Host{Root: "/"}))
}

// of has the CNI folders of the node's container runtime, if they are known.
func (d Dirs) of(h kubesource.Host) Dirs {
	c, err := h.CNI()
	if err != nil || c.ConfDir == "" {
		return d
	}
	d.CNIConf = c.ConfDir
	if !slices.Contains(c.BinDirs, d.CNIBin) {
		d.CNIBin = c.BinDirs[0]
	}
	return d
}

// NewHost takes over the descriptor of the host's network namespace.
func NewHost(ns *os.File, dirs Dirs) (*Host, error) {
	h := &Host{NetNS: ns, Dirs: dirs}
	var err error
	if h.NFT, err = nft.NewKernel(int(ns.Fd())); err != nil {
		return nil, err
	}
	if h.Firewall, err = NewFirewall(int(ns.Fd()), h.NFT, ""); err != nil {
		return nil, err
	}
	return h, nil
}

// Close closes the descriptor of the namespace.
func (h *Host) Close() error { return h.NetNS.Close() }

// FD is the descriptor of the namespace.
func (h *Host) FD() int { return int(h.NetNS.Fd()) }

// Verify names everything that is left as one error.
func (h *Host) Verify(ctx context.Context, features []Feature) error {
	var left []string
	var errs []error
	for _, f := range having[Uninstaller](features) {
		found, err := f.Remains(ctx, h)
		left, errs = append(left, found...), append(errs, err)
	}
	for _, dir := range []string{h.State, h.Run} {
		if _, err := os.Lstat(dir); err == nil {
			left = append(left, "folder "+dir)
		} else if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot tell whether something is left: %w", err)
	}
	if len(left) > 0 {
		return fmt.Errorf("left on this node: %s", strings.Join(left, ", "))
	}
	return nil
}

// Uninstall removes everything of Wayleave, the features in the opposite order of the registry. No agent may own the
// node.
func (h *Host) Uninstall(ctx context.Context, features []Feature) error {
	if _, err := os.Stat(h.Run); err == nil {
		wait, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		lock, err := owner.Acquire(wait, filepath.Join(h.Run, ownerLock), nil)
		if err != nil {
			return fmt.Errorf("an agent still owns this node; delete the DaemonSet first: %w", err)
		}
		defer lock.Release()
	}
	var errs []error
	for _, f := range slices.Backward(having[Uninstaller](features)) {
		errs = append(errs, f.Uninstall(ctx, h))
	}
	return errors.Join(append(errs, os.RemoveAll(h.State), os.RemoveAll(h.Run))...)
}
