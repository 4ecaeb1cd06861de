package main

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// The command for laptops compiles for macOS: nothing that it imports needs a node's kernel.
func TestTheCommandBuildsForLaptops(t *testing.T) {
	build := exec.Command("go", "build", "-o", filepath.Join(t.TempDir(), "wayleave"), ".")
	build.Env = append(build.Environ(), "GOOS=darwin", "GOARCH=arm64", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
