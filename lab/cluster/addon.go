package cluster

import (
	"context"
	"fmt"

	"wayleave.dev/lab/build"
	"wayleave.dev/lab/images"
)

// Addon builds a program that Wayleave takes over from, and loads its images into the nodes. It returns the path of
// the manifest that its own project publishes.
func (l *Lab) Addon(ctx context.Context, name string) (manifest string, err error) {
	var archive string
	err = l.building(ctx, func(cache *build.Cache, _ string) error {
		if name != "metallb" {
			return fmt.Errorf("addon: found %q; allowed: metallb", name)
		}
		metallb, err := cache.MetalLB(ctx)
		if err != nil {
			return err
		}
		manifest = metallb.Manifest
		archive, err = images.MetalLB(ctx, cache, metallb)
		return err
	})
	if err != nil {
		return "", err
	}
	return manifest, l.Load(ctx, archive)
}
