// Package place locates the lab's files: builds (the cache, kept), the state of a running lab (on /run), and the data
// of its nodes (on disk). A lab that is down has neither state nor data.
package place

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Dirs are the folders of one lab, all absolute.
type Dirs struct {
	Cache string // WAYLEAVE_LAB_CACHE, otherwise ${XDG_CACHE_HOME:-~/.cache}/wayleave-lab
	State string // WAYLEAVE_LAB_STATE, otherwise /run/wayleave-lab
	Data  string // WAYLEAVE_LAB_DATA, otherwise /var/lib/wayleave-lab
}

// Find reads the environment. getenv is os.Getenv except in tests.
func Find(getenv func(string) string) (Dirs, error) {
	cache := getenv("XDG_CACHE_HOME")
	if cache == "" {
		home := getenv("HOME")
		if home == "" {
			home = "/root"
		}
		cache = filepath.Join(home, ".cache")
	}
	dirs := Dirs{
		Cache: or(getenv("WAYLEAVE_LAB_CACHE"), filepath.Join(cache, "wayleave-lab")),
		State: or(getenv("WAYLEAVE_LAB_STATE"), "/run/wayleave-lab"),
		Data:  or(getenv("WAYLEAVE_LAB_DATA"), "/var/lib/wayleave-lab"),
	}
	for _, dir := range []string{dirs.Cache, dirs.State, dirs.Data} {
		// "lab down" removes state and data as a whole.
		if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" || strings.Count(filepath.Clean(dir), "/") < 2 {
			return Dirs{}, fmt.Errorf("place: %q: must be an absolute path of at least two elements", dir)
		}
	}
	return dirs, nil
}

func or(value, otherwise string) string {
	if value != "" {
		return filepath.Clean(value)
	}
	return otherwise
}

// Processes returns the folder of the records of started processes.
func (d Dirs) Processes() string { return filepath.Join(d.State, "processes") }

// Logs returns the folder of every log.
func (d Dirs) Logs() string { return filepath.Join(d.State, "logs") }

// PKI returns the folder of keys and certificates.
func (d Dirs) PKI() string { return filepath.Join(d.State, "pki") }

// Kubeconfig returns the administrator's file, for use on the host.
func (d Dirs) Kubeconfig() string { return filepath.Join(d.State, "kubeconfig") }

// FabricKubeconfig returns the administrator's file, for use from the lab's own network.
func (d Dirs) FabricKubeconfig() string { return filepath.Join(d.State, "kubeconfig.fabric") }

// Node returns the folder of a node's configuration.
func (d Dirs) Node(name string) string { return filepath.Join(d.State, "nodes", name) }

// NodeData returns the folder of a node's data: images, volumes.
func (d Dirs) NodeData(name string) string { return filepath.Join(d.Data, name) }

// Checkout returns the root of the Wayleave checkout: WAYLEAVE_ROOT, or the folder above the working directory with the
// module wayleave.dev, or the one from which this program was compiled.
func Checkout() (string, error) {
	var starts []string
	if root := os.Getenv("WAYLEAVE_ROOT"); root != "" {
		starts = append(starts, root)
	}
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	if _, file, _, ok := runtime.Caller(0); ok {
		starts = append(starts, filepath.Dir(file))
	}
	for _, start := range starts {
		for dir := start; ; dir = filepath.Dir(dir) {
			if isRoot(dir) {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", errors.New("place: no checkout of wayleave.dev found: run this inside one, or set WAYLEAVE_ROOT")
}

func isRoot(dir string) bool {
	file, err := os.Open(filepath.Join(dir, "go.mod"))
	if err != nil {
		return false
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "module wayleave.dev" {
			return true
		}
	}
	return false
}
