package images

import (
	"context"
	"path/filepath"

	"wayleave.dev/internal/dockerarchive"
	"wayleave.dev/lab/build"
)

// CoreDNSImage is CoreDNS under kubeadm's name for it.
const CoreDNSImage = "registry.k8s.io/coredns/coredns:" + build.CoreDNSVersion

// CoreDNS returns an archive with CoreDNS' image.
func CoreDNS(ctx context.Context, cache *build.Cache) (string, error) {
	program, err := cache.CoreDNS(ctx)
	if err != nil {
		return "", err
	}
	dir, err := cache.Make("coredns-image", "CoreDNS' image", []string{recipe, program}, func(dir string) error {
		layer := &dockerarchive.Layer{}
		if err := first([]error{layer.Copy("/coredns", 0o755, program, root),
			layer.Dir("/tmp", 0o777, root)}); err != nil {
			return err
		}
		config := dockerarchive.Config{Entrypoint: []string{"/coredns"}, WorkingDir: "/"}
		return dockerarchive.WriteFile(filepath.Join(dir, "coredns.tar"),
			image(config, []*dockerarchive.Layer{layer}, CoreDNSImage))
	})
	return filepath.Join(dir, "coredns.tar"), err
}

// AgnhostWithCoreDNS returns an archive with Kubernetes' test program and CoreDNS, like upstream's image: some tests
// run their own DNS server from it.
func AgnhostWithCoreDNS(ctx context.Context, cache *build.Cache, programs *build.Programs) (string, error) {
	tree, err := cache.Root(ctx, "image-root", tools...)
	if err != nil {
		return "", err
	}
	program, err := cache.CoreDNS(ctx)
	if err != nil {
		return "", err
	}
	dir, err := cache.Make("agnhost-coredns-image", "agnhost with CoreDNS", []string{recipe, tree, programs.Agnhost,
		program}, func(dir string) error {
		all, err := agnhostImages(ctx, tree, programs)
		if err != nil {
			return err
		}
		layer := &dockerarchive.Layer{}
		if err := layer.Copy("/coredns", 0o755, program, root); err != nil {
			return err
		}
		agnhost := all[0]
		agnhost.Layers = append(agnhost.Layers[:len(agnhost.Layers):len(agnhost.Layers)], layer)
		return dockerarchive.WriteFile(filepath.Join(dir, "agnhost.tar"), agnhost)
	})
	return filepath.Join(dir, "agnhost.tar"), err
}
