package images

import (
	"context"
	"path/filepath"
	"strings"

	"wayleave.dev/internal/dockerarchive"
	"wayleave.dev/lab/build"
)

// components are the commands of static pods and DaemonSets that kubeadm writes.
var components = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"}

// ControlPlane returns an archive with one image under all names that kubeadm pulls, except the one of pause, which
// Base has. CoreDNS is among the names, since kubeadm pulls it before it skips it, but not in the image.
func ControlPlane(ctx context.Context, cache *build.Cache, kube string, kubeadm *build.Kubeadm) (string, error) {
	var tags []string
	for _, name := range kubeadm.Images {
		if !strings.Contains(name, "/pause:") {
			tags = append(tags, name)
		}
	}
	inputs := append([]string{recipe, kube}, tags...)
	dir, err := cache.Make("control-plane-image", "kubeadm's images", inputs, func(dir string) error {
		layer := &dockerarchive.Layer{}
		steps := []error{layer.Copy("/kube", 0o755, kube, root), layer.Dir("/tmp", 0o777, root)}
		for _, name := range components {
			steps = append(steps, layer.Symlink("/usr/local/bin/"+name, "/kube"))
		}
		if err := first(steps); err != nil {
			return err
		}
		config := dockerarchive.Config{Env: []string{"PATH=" + path}}
		return dockerarchive.WriteFile(filepath.Join(dir, "control-plane.tar"),
			image(config, []*dockerarchive.Layer{layer}, tags...))
	})
	return filepath.Join(dir, "control-plane.tar"), err
}
