package podnetwork

import (
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	kubesource "wayleave.dev/source/kubernetes"
)

// A runtime that looks elsewhere would never call the plugin: the node says which settings to change.
func TestARuntimeThatLooksElsewhereIsReported(t *testing.T) {
	conf, bin := t.TempDir(), t.TempDir()
	n := &agent.Node{Core: agent.NewCore(slog.New(slog.NewTextHandler(io.Discard, nil)), nil, config.Default(), nil),
		Name: "node1", Dirs: agent.Dirs{CNIConf: conf, CNIBin: bin}}
	problem := func(runtime kubesource.CNI, unknown error) string {
		t.Helper()
		if err := checkFolders(n, runtime, unknown); err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, p := range n.Problems.List() {
			all = append(all, p.Reason)
		}
		return strings.Join(all, "\n")
	}
	there := kubesource.CNI{ConfDir: conf, BinDirs: []string{bin}, From: "containerd's config.toml"}
	elsewhere := there
	elsewhere.ConfDir = "/var/snap/microk8s/current/args/cni-network"
	for _, want := range []string{"containerd's config.toml", elsewhere.ConfDir, "podnetwork.cniConfDir",
		"podnetwork.cniBinDir", "docs/install"} {
		if got := problem(elsewhere, nil); !strings.Contains(got, want) {
			t.Errorf("the problem does not have %q: %s", want, got)
		}
	}
	if got := problem(kubesource.CNI{}, errors.New("config.toml: damaged")); !strings.Contains(got, "damaged") {
		t.Errorf("a damaged configuration: %q", got)
	}
	for name, runtime := range map[string]kubesource.CNI{"the same": there, "no runtime is known": {}} {
		if got := problem(runtime, nil); got != "" {
			t.Errorf("%s: %s", name, got)
		}
	}
	n.CNIBin = filepath.Join(bin, "missing")
	if err := checkFolders(n, there, nil); err == nil || !strings.Contains(err.Error(), "podnetwork.cniBinDir") {
		t.Errorf("a folder that is not mounted: %v", err)
	}
}
