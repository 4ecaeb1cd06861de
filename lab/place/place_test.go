package place

import (
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	for _, c := range []struct {
		name string
		env  map[string]string
		want Dirs
		err  string
	}{
		{"defaults", map[string]string{"HOME": "/home/a"},
			Dirs{"/home/a/.cache/wayleave-lab", "/run/wayleave-lab", "/var/lib/wayleave-lab"}, ""},
		{"XDG", map[string]string{"HOME": "/home/a", "XDG_CACHE_HOME": "/c/x"},
			Dirs{"/c/x/wayleave-lab", "/run/wayleave-lab", "/var/lib/wayleave-lab"}, ""},
		{"all set", map[string]string{"WAYLEAVE_LAB_CACHE": "/a/c/", "WAYLEAVE_LAB_STATE": "/a/s",
			"WAYLEAVE_LAB_DATA": "/a/d"},
			Dirs{"/a/c", "/a/s", "/a/d"}, ""},
		{"relative", map[string]string{"WAYLEAVE_LAB_STATE": "a/b"}, Dirs{}, `"a/b"`},
		{"too short to be removed", map[string]string{"WAYLEAVE_LAB_DATA": "/var"}, Dirs{}, `"/var"`},
		{"root", map[string]string{"WAYLEAVE_LAB_DATA": "/x/.."}, Dirs{}, `"/"`},
	} {
		got, err := Find(func(name string) string { return c.env[name] })
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: got %v, want an error naming %s", c.name, err, c.err)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
}
