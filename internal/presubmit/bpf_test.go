package presubmit

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var compiled = regexp.MustCompile(`(?m)^//go:generate \S*hack/bpf (\S+) (\S+)$`)

// Programs are compiled from the source and with the flags that are in the repository: `go generate` makes them anew.
func TestCompiledProgramsAreFresh(t *testing.T) {
	script, found := read(t, filepath.Join(root(t), "hack", "bpf")), 0
	files, err := filepath.Glob(filepath.Join(root(t), "kernel", "bpf", "*", "doc.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		dir := filepath.Dir(file)
		for _, m := range compiled.FindAllStringSubmatch(read(t, file), -1) {
			found++
			sum := sha256.Sum256([]byte(read(t, filepath.Join(dir, m[2])) + script))
			have, _, _ := strings.Cut(read(t, filepath.Join(dir, m[1]+".sha256")), "\n")
			if want := hex.EncodeToString(sum[:]); have != want {
				t.Errorf("%s is stale: run `go generate ./kernel/bpf/...`, which needs clang", filepath.Join(dir, m[2]))
			}
			if _, err := os.Stat(filepath.Join(dir, m[1]+"_bpfel.o")); err != nil {
				t.Error(err)
			}
		}
	}
	if found == 0 {
		t.Error("no program was found")
	}
}
