package build

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// Kubeadm is kubeadm, and the images that it needs for a control plane.
type Kubeadm struct {
	Program string
	Images  []string
}

// Kubeadm builds kubeadm of the lab's Kubernetes.
func (c *Cache) Kubeadm(ctx context.Context, checkout string) (*Kubeadm, error) {
	kube, err := c.kubeModule(ctx, checkout)
	if err != nil {
		return nil, err
	}
	dir, err := c.Make("kubeadm", "kubeadm of Kubernetes "+kube.version, kube.inputs, func(dir string) error {
		return kube.build(ctx, filepath.Join(dir, "kubeadm"), kubernetesModule+"/cmd/kubeadm")
	})
	if err != nil {
		return nil, err
	}
	k := &Kubeadm{Program: filepath.Join(dir, "kubeadm")}
	out, err := exec.CommandContext(ctx, k.Program, "config", "images", "list",
		"--kubernetes-version="+kube.version).Output()
	if err != nil {
		return nil, fmt.Errorf("kubeadm config images list: %w", err)
	}
	k.Images = strings.Fields(string(out))
	return k, nil
}
