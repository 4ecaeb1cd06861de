package images

import (
	"context"
	"path/filepath"

	"wayleave.dev/internal/dockerarchive"
	"wayleave.dev/lab/build"
)

// MetalLB returns an archive with the images that MetalLB's manifest names.
func MetalLB(ctx context.Context, cache *build.Cache, metallb *build.MetalLB) (string, error) {
	dir, err := cache.Make("metallb-image", "MetalLB's images", []string{recipe, metallb.Dir}, func(dir string) error {
		var all []dockerarchive.Image
		for _, name := range []string{"controller", "speaker"} {
			layer := &dockerarchive.Layer{}
			if err := first([]error{layer.Copy("/"+name, 0o755, filepath.Join(metallb.Dir, name), root),
				layer.Dir("/tmp", 0o777, root)}); err != nil {
				return err
			}
			all = append(all, image(dockerarchive.Config{Entrypoint: []string{"/" + name}},
				[]*dockerarchive.Layer{layer}, "quay.io/metallb/"+name+":"+build.MetalLBVersion))
		}
		return dockerarchive.WriteFile(filepath.Join(dir, "metallb.tar"), all...)
	})
	return filepath.Join(dir, "metallb.tar"), err
}
