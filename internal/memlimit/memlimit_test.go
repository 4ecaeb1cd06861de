package memlimit

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTheLimitOfTheContainerIsFound(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"no groups":            {nil, 0},
		"version 2, own root":  {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n"}, 1000},
		"version 2, unlimited": {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 0},
		"version 2, a pod's limit": {map[string]string{"proc/self/cgroup": "0::/pod/agent\n", "sys/fs/cgroup/pod/agent/memory.max": "max\n",
			"sys/fs/cgroup/pod/memory.max": "3000\n"}, 3000},
		"version 2, the host's path": {map[string]string{"proc/self/cgroup": "0::/../kubepods/x\n", "sys/fs/cgroup/memory.max": "2000\n"}, 2000},
		"version 1": {map[string]string{"proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "4000\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 4000},
		"garbage": {map[string]string{"proc/self/cgroup": "\n:::\nx\n0::/\n", "sys/fs/cgroup/memory.max": "many\n"}, 0},
	} {
		root := t.TempDir()
		for f, text := range tc.files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, f), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := Limit(root); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

func TestChildrenLeaveHalf(t *testing.T) {
	for _, tc := range []struct{ children, limit, want int64 }{{0, 0, 0}, {100, 1000, 800}, {800, 1000, 450}, {0, 1000, 900}} {
		if got := Of(tc.children, tc.limit); got != tc.want {
			t.Errorf("%d of %d: %d, want %d", tc.children, tc.limit, got, tc.want)
		}
	}
}
