package agent

import (
	"os"
	"path/filepath"
	"testing"

	"wayleave.dev/config"
	kubesource "wayleave.dev/source/kubernetes"
)

// Uninstall removes the plugin and its configuration from the folders of the node's runtime, wherever they are.
func TestUninstallLooksWhereTheRuntimeDoes(t *testing.T) {
	for _, tc := range []struct{ name, containerd, conf, bin string }{
		{"the defaults", "version = 3\n", config.CNIConfDir, config.CNIBinDir},
		{"folders of its own", "[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/var/x/net.d'\n" +
			"bin_dirs = ['/var/x/bin', '/var/y/bin']\n", "/var/x/net.d", "/var/x/bin"},
		{"the default among others", "[plugins.'io.containerd.cri.v1.runtime'.cni]\n" +
			"bin_dirs = ['/usr/libexec/cni', '/opt/cni/bin']\n", config.CNIConfDir, config.CNIBinDir},
		{"a damaged configuration", "[", config.CNIConfDir, config.CNIBinDir},
	} {
		root := t.TempDir()
		for name, text := range map[string]string{
			"proc/7/cmdline": "/usr/bin/containerd\x00", "etc/containerd/config.toml": tc.containerd,
			"proc/7/status": "Name:\tcontainerd\nUid:\t0\t0\t0\t0\nNSpid:\t7\n"} {
			file := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d := hostDirs().of(kubesource.Host{Root: root})
		if d.CNIConf != tc.conf || d.CNIBin != tc.bin {
			t.Errorf("%s: %s, %s", tc.name, d.CNIConf, d.CNIBin)
		}
	}
}
