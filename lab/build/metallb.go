package build

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
)

// MetalLBVersion is the version of MetalLB that Wayleave is compared with.
const MetalLBVersion = "v0.15.2"

const metalLBModule = "go.universe.tf/metallb"

// MetalLB is MetalLB's programs, controller and speaker, and the manifest of its release.
type MetalLB struct{ Dir, Manifest string }

// MetalLB builds MetalLB.
func (c *Cache) MetalLB(ctx context.Context) (*MetalLB, error) {
	dir, err := c.install(ctx, "metallb", metalLBModule, MetalLBVersion, "controller", "speaker")
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", metalLBModule+"@"+MetalLBVersion).Output()
	if err != nil {
		return nil, fmt.Errorf("build: MetalLB's manifest: %w", err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return nil, fmt.Errorf("build: MetalLB's manifest: %w", err)
	}
	return &MetalLB{Dir: dir, Manifest: filepath.Join(module.Dir, "config/manifests/metallb-native.yaml")}, nil
}
