package images

import (
	"context"
	"path/filepath"

	"wayleave.dev/internal/dockerarchive"
	"wayleave.dev/lab/build"
)

// NginxImage is Debian's nginx. It stands for ingress-nginx, whose image cannot be built from Go modules.
const NginxImage = "wayleave.dev/lab-nginx:dev"

// Nginx returns an archive with Debian's nginx.
func Nginx(ctx context.Context, cache *build.Cache) (string, error) {
	tree, err := cache.Root(ctx, "nginx-root", "base-files", "busybox-static", "nginx-light")
	if err != nil {
		return "", err
	}
	dir, err := cache.Make("nginx-image", "nginx's image", []string{recipe, tree}, func(dir string) error {
		layer := &dockerarchive.Layer{}
		steps := []error{layer.Tree("/", tree, root), layer.Dir("/tmp", 0o777, root), layer.Dir("/var/log/nginx", 0o755,
			root), layer.Dir("/var/lib/nginx", 0o755, root), layer.Dir("/run", 0o755, root)}
		if err := first(append(steps, users(layer)...)); err != nil {
			return err
		}
		config := dockerarchive.Config{Entrypoint: []string{"/usr/sbin/nginx", "-g", "daemon off;"}}
		return dockerarchive.WriteFile(filepath.Join(dir, "nginx.tar"),
			image(config, []*dockerarchive.Layer{layer}, NginxImage))
	})
	return filepath.Join(dir, "nginx.tar"), err
}
