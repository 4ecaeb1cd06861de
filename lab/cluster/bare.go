package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"wayleave.dev/lab/control"
	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/images"
	"wayleave.dev/lab/node"
)

// A bare lab has machines and no cluster: containerd, kubelet, kubeadm, and the images of a control plane.

// buildBare builds what kubeadm needs.
func (u *up) buildBare(ctx context.Context) (err error) {
	if u.kubeadm, err = u.cache.Kubeadm(ctx, u.checkout); err != nil {
		return err
	}
	archive, err := images.ControlPlane(ctx, u.cache, u.programs.Kube, u.kubeadm)
	u.images = append(u.images, archive)
	return err
}

// prepareBare writes every file of a bare lab.
func (u *up) prepareBare(context.Context) error {
	if err := u.prepareFolders(); err != nil {
		return err
	}
	for i, machine := range u.plan.Nodes {
		u.nodes = append(u.nodes, u.node(i, machine))
	}
	return u.remember()
}

// startBare starts the machines, and loads their images.
func (u *up) startBare(ctx context.Context) error {
	var group errgroup.Group
	for _, config := range u.nodes {
		// Kubernetes' documentation asks for this of every machine.
		if err := fabric.Do(config.Machine.Namespace, func() error {
			return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
		}); err != nil {
			return fmt.Errorf("lab: %s: %w", config.Machine.Name, err)
		}
		spec, err := config.PrepareBare(u.kubeadm.Program)
		if err != nil {
			return err
		}
		if err := u.startMachine(config.Machine, spec); err != nil {
			return err
		}
		group.Go(func() error {
			return u.importImages(ctx, config.Machine.Name, u.programs.Ctr, u.images)
		})
	}
	return group.Wait()
}

// server is where the host's forwarder finds the API server: that of kubeadm is on the first node.
func (u *up) server() (namespace, address string) {
	if u.Bare {
		first := u.plan.Nodes[0]
		return first.Namespace, fmt.Sprintf("%s:%d", first.V4(), control.Port)
	}
	return fabric.Control, fmt.Sprintf("%s:%d", u.plan.Control.V4(), control.Port)
}

// node describes a node with the properties that all labs have.
func (u *up) node(i int, machine fabric.Machine) node.Config {
	return node.Config{Machine: machine, Index: i, Plan: u.plan, Dirs: u.Dirs, Programs: u.programs,
		Registry: u.registry().String()}
}

// prepareFolders makes the folders of the lab.
func (u *up) prepareFolders() error {
	for _, dir := range []string{u.Dirs.State, u.Dirs.Logs(), u.registryDir(), u.Dirs.Data,
		filepath.Join(u.Dirs.State, "control")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
	}
	if err := u.prepareData(); err != nil {
		return err
	}
	u.port = freePort()
	return u.copySelf()
}
