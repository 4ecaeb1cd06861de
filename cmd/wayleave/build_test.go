package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The command for laptops compiles for macOS, with each command that asks a cluster: nothing that they import needs a
// node's kernel.
func TestTheCommandBuildsForLaptops(t *testing.T) {
	for _, arch := range []string{"arm64", "amd64"} {
		file := filepath.Join(t.TempDir(), "wayleave")
		build := exec.Command("go", "build", "-o", file, ".")
		build.Env = append(build.Environ(), "GOOS=darwin", "GOARCH="+arch, "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
			continue
		}
		program, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"status", "check", "support-bundle", "test connectivity", "install", "upgrade"} {
			c, _, err := root().Find(strings.Fields(name))
			if err != nil || c.Short == "" || !bytes.Contains(program, []byte(c.Short)) {
				t.Errorf("%s: %v: the program for darwin/%s has no such command", name, err, arch)
			}
		}
	}
}
