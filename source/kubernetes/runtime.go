package kubernetes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"wayleave.dev/config"
)

// CNI are the folders of the node in which its container runtime looks for CNI plugins. The zero value means that no
// runtime was found.
type CNI struct {
	// ConfDir has the configurations; BinDirs have the plugins.
	ConfDir string   `json:"confDir,omitempty"`
	BinDirs []string `json:"binDirs,omitempty"`
	// From names the runtime's configuration.
	From string `json:"from,omitempty"`
}

// Reads reports whether the runtime finds a configuration and a plugin in these folders, or may.
func (c CNI) Reads(confDir, binDir string) bool {
	return c.ConfDir == "" || c.ConfDir == filepath.Clean(confDir) && slices.Contains(c.BinDirs, filepath.Clean(binDir))
}

// CNI returns the folders of the runtime that the kubelet uses.
func (h Host) CNI() (CNI, error) {
	flags := h.kubeletFlags()
	kubelet, err := h.kubeletConfig(flags)
	if err != nil {
		kubelet.ContainerRuntimeEndpoint = flag(flags, "container-runtime-endpoint", "containerd")
	}
	socket := socketPath(kubelet.ContainerRuntimeEndpoint)
	var all []CNI
	for _, args := range h.processes(isRuntime) {
		read := h.containerd
		if filepath.Base(args[0]) == "crio" {
			read = h.crio
		}
		c, address, err := read(args)
		if err != nil {
			return CNI{}, err
		}
		c.ConfDir = h.snapPath(filepath.Clean(c.ConfDir))
		for i, d := range c.BinDirs {
			c.BinDirs[i] = h.snapPath(filepath.Clean(d))
		}
		if socketPath(address) == socket {
			return c, nil
		}
		all = append(all, c)
	}
	if len(all) == 1 { // a kubelet whose settings are not known, or that names the socket by a link
		return all[0], nil
	}
	return CNI{}, nil
}

func isRuntime(args []string) bool {
	name := filepath.Base(args[0])
	return name == "containerd" || name == "crio"
}

// socketPath is the path of a CRI endpoint.
func socketPath(endpoint string) string {
	path := strings.TrimPrefix(endpoint, "unix://")
	if path == "" {
		path = "/run/containerd/containerd.sock"
	}
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		path = "/run/" + rest
	}
	return filepath.Clean(path)
}

// snapRevision is a folder of one revision of a snap.
var snapRevision = regexp.MustCompile(`^(/var/snap/[^/]+)/(x?[0-9]+)(/.*)$`)

// snapPath replaces the revision of a snap by "current" if the link leads there: a refresh of the snap changes the
// revision.
func (h Host) snapPath(path string) string {
	m := snapRevision.FindStringSubmatch(path)
	if m == nil {
		return path
	}
	if to, err := os.Readlink(filepath.Join(h.Root, m[1], "current")); err != nil || filepath.Base(to) != m[2] {
		return path
	}
	return m[1] + "/current" + m[3]
}

// containerd reads the configuration of a containerd with these arguments.
func (h Host) containerd(args []string) (c CNI, address string, err error) {
	file := flag(args, "config", "c")
	if file == "" {
		file = "/etc/containerd/config.toml"
	}
	c, address = CNI{From: "containerd's " + file}, flag(args, "address", "a")
	tree, err := h.toml(file)
	if err != nil {
		return c, "", err
	}
	files := []map[string]any{tree}
	for _, pattern := range texts(tree["imports"]) {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(file), pattern)
		}
		for _, name := range h.list(pattern) {
			imported, err := h.toml(name)
			if err != nil {
				return c, "", err
			}
			files = append(files, imported)
		}
	}
	for _, f := range files {
		if a, _ := table(f, "grpc")["address"].(string); a != "" && flag(args, "address", "a") == "" {
			address = a
		}
		// The plugin's names in versions 1, 2 and 3 of the configuration.
		for _, plugin := range []string{"cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"} {
			c.take(table(f, "plugins", plugin, "cni"), "conf_dir", "bin_dir", "bin_dirs")
		}
	}
	c.fill()
	return c, address, nil
}

// crio reads the configuration of CRI-O.
func (h Host) crio(args []string) (c CNI, address string, err error) {
	file, dir := flag(args, "config", "c"), flag(args, "config-dir", "d")
	if file == "" {
		file = "/etc/crio/crio.conf"
	}
	if dir == "" {
		dir = "/etc/crio/crio.conf.d"
	}
	c, address = CNI{From: "CRI-O's " + file}, "/run/crio/crio.sock"
	for _, name := range append([]string{file}, h.list(filepath.Join(dir, "*"))...) {
		tree, err := h.toml(name)
		if err != nil {
			return c, "", err
		}
		if a, _ := table(tree, "crio", "api")["listen"].(string); a != "" {
			address = a
		}
		c.take(table(tree, "crio", "network"), "network_dir", "plugin_dir", "plugin_dirs")
	}
	c.fill()
	return c, address, nil
}

// take takes what a table sets.
func (c *CNI) take(t map[string]any, conf, bin, bins string) {
	if d, _ := t[conf].(string); d != "" {
		c.ConfDir = d
	}
	if d, _ := t[bin].(string); d != "" {
		c.BinDirs = []string{d}
	}
	if list := texts(t[bins]); len(list) > 0 {
		c.BinDirs = list
	}
}

// fill completes what no file sets.
func (c *CNI) fill() {
	if c.ConfDir == "" {
		c.ConfDir = config.CNIConfDir
	}
	if len(c.BinDirs) == 0 {
		c.BinDirs = []string{config.CNIBinDir}
	}
}

// toml reads a file, which may be missing.
func (h Host) toml(file string) (tree map[string]any, err error) {
	raw, err := h.read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = toml.Unmarshal(raw, &tree)
	}
	if err != nil {
		return nil, fmt.Errorf("container runtime's configuration %s: %w; the settings podnetwork.cniConfDir and "+
			"podnetwork.cniBinDir are used", file, err)
	}
	return tree, nil
}

// table is a table inside of others, nil if there is none.
func table(t map[string]any, names ...string) map[string]any {
	for _, name := range names {
		t, _ = t[name].(map[string]any)
	}
	return t
}

// texts are the texts of a list.
func texts(v any) (out []string) {
	list, _ := v.([]any)
	for _, item := range list[:min(len(list), maxFiles)] {
		if s, ok := item.(string); ok {
			out = append(out, s)
		}
	}
	return out
}
