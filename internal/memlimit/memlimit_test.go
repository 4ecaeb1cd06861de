package memlimit

import (
	"os"
	"testing"
	"testing/fstest"
)

func TestTheLimitOfTheCgroupIsFound(t *testing.T) {
	for name, x := range map[string]struct {
		cgroup string
		files  map[string]string
		want   int64
		bad    bool
	}{
		"v2, in a namespace": {"0::/\n", map[string]string{"memory.max": "1073741824\n"}, 1 << 30, false},
		"v2, the host's path": {"0::/kubepods.slice/pod1/c1\n",
			map[string]string{"kubepods.slice/pod1/c1/memory.max": "536870912\n"}, 512 << 20, false},
		"v2, the pod has less": {"0::/pod/c\n", map[string]string{"pod/memory.max": "1048576\n",
			"pod/c/memory.max": "max\n"}, 1 << 20, false},
		"v2, none":        {"0::/\n", map[string]string{"memory.max": "max\n"}, 0, false},
		"v2, not mounted": {"0::/a/b\n", nil, 0, false},
		"v1, bind mount": {"9:memory:/kubepods/pod1/c1\n3:cpu,cpuacct:/x\n",
			map[string]string{"memory/memory.limit_in_bytes": "268435456\n"}, 256 << 20, false},
		"v1, whole tree": {"9:memory:/a/b\n",
			map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712\n",
				"memory/a/b/memory.limit_in_bytes": "4194304\n"}, 4 << 20, false},
		"v1, none": {"9:memory:/\n",
			map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0, false},
		"v1 with an empty v2": {"9:memory:/\n0::/\n",
			map[string]string{"memory/memory.limit_in_bytes": "4194304\n"}, 4 << 20, false},
		"above the mount":           {"0::/../../c\n", map[string]string{"memory.max": "1048576\n"}, 1 << 20, false},
		"no line":                   {"", nil, 0, false},
		"a line of another form":    {"nonsense\n", nil, 0, false},
		"a number that is none":     {"0::/\n", map[string]string{"memory.max": "a lot\n"}, 0, true},
		"a number that is negative": {"0::/\n", map[string]string{"memory.max": "-1\n"}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{"proc/self/cgroup": {Data: []byte(x.cgroup)}}
			for f, text := range x.files {
				root["sys/fs/cgroup/"+f] = &fstest.MapFile{Data: []byte(text)}
			}
			got, err := Limit(root)
			if got != x.want || (err != nil) != x.bad {
				t.Errorf("%d, %v; want %d", got, err, x.want)
			}
		})
	}
}

// On this very machine the question has an answer.
func TestThisProcessCanBeAsked(t *testing.T) {
	if _, err := Limit(os.DirFS("/")); err != nil {
		t.Error(err)
	}
}
