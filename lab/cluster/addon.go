package cluster

import (
	"context"
	"fmt"

	"wayleave.dev/lab/build"
	"wayleave.dev/lab/images"
)

// Addon builds a program that Wayleave takes over from, and loads its images into the nodes. It returns the path of
// the manifest that MetalLB's own project publishes, and the name of nginx's image.
func (l *Lab) Addon(ctx context.Context, name string) (result string, err error) {
	var archive string
	err = l.building(ctx, func(cache *build.Cache, _ string) error {
		switch name {
		case "metallb":
			metallb, err := cache.MetalLB(ctx)
			if err != nil {
				return err
			}
			result = metallb.Manifest
			archive, err = images.MetalLB(ctx, cache, metallb)
			return err
		case "nginx":
			result = images.NginxImage
			archive, err = images.Nginx(ctx, cache)
			return err
		}
		return fmt.Errorf("addon: found %q; allowed: metallb, nginx", name)
	})
	if err != nil {
		return "", err
	}
	return result, l.Load(ctx, archive)
}
