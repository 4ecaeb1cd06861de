package install

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"wayleave.dev/config"
)

// fileOf writes settings as a file, nested in a random way.
func fileOf(r *rand.Rand, v values) string {
	var b strings.Builder
	group := ""
	for _, key := range slices.Sorted(maps.Keys(v)) {
		g, name, nested := strings.Cut(key, ".")
		pad := ""
		if nested {
			if g != group {
				fmt.Fprintf(&b, "%s:\n", g)
			}
			pad = "  "
		}
		if !nested {
			name = key
		}
		group = g
		if r.IntN(2) == 0 {
			fmt.Fprintf(&b, "%s# about %s\n", pad, name)
		}
		fmt.Fprintf(&b, "%s%s: %v\n", pad, name, v[key])
	}
	return b.String()
}

// In any three files, each key of the new version has the cluster's value if that was edited, otherwise the new
// default.
func TestEditsSurviveInAnyFile(t *testing.T) {
	keys := []string{"mode", "logLevel", "dns.hosts", "dns.cacheMiB", "service.conntrack.min",
		"ingress.nodeSelector", "x.other"}
	texts := []string{"1", "2", `"a: b # c"`, "[]", "{}", "[a, b]", "true", `"on"`, `"y"`, `"0755"`, `""`, "1h"}
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 17))
		version := func() values {
			v := values{}
			for _, k := range keys {
				if r.IntN(4) > 0 {
					v[k] = texts[r.IntN(len(texts))]
				}
			}
			return v
		}
		base, target := version(), version()
		live := maps.Clone(base)
		edited := map[string]bool{}
		for k := range live {
			if now := texts[r.IntN(len(texts))]; r.IntN(3) == 0 && now != live[k] {
				live[k], edited[k] = now, true
			}
		}
		e, err := newEdit(fileOf(r, base), fileOf(r, live), fileOf(r, target), "")
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		text, _, err := e.merge()
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		got, err := readValues(text, func(key string) bool { return slices.Contains(keys, key) })
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, text)
		}
		for k, want := range target {
			if edited[k] {
				want = live[k]
			}
			var v any
			if err := yaml.Unmarshal(fmt.Append(nil, want), &v); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got[k], v) {
				t.Errorf("seed %d: %s is %v, want %v", seed, k, got[k], v)
			}
		}
		if len(got) != len(target) {
			t.Errorf("seed %d: %d settings, want %d", seed, len(got), len(target))
		}
	}
}

// Settings in use that change their meaning are named, in both directions; others are not.
func TestChangedMeaningIsNamed(t *testing.T) {
	changes := []config.Change{{Version: 2, Key: "mode", What: "two"}, {Version: 3, Key: "mode", What: "three"},
		{Version: 3, Key: "logLevel", What: "never set"}}
	file := func(n int) values { return values{versionKey: float64(n), "mode": "auto"} }
	for _, tc := range []struct {
		from, to int
		want     string
	}{{1, 2, "[mode: two]"}, {1, 3, "[mode: two mode: three]"}, {3, 2, "[mode: three]"}, {2, 2, "[]"}} {
		e := &edit{base: file(tc.from), live: file(tc.from), target: file(tc.to), operator: values{"mode": "ipvs"}}
		if got := fmt.Sprint(e.meaning(changes)); got != tc.want {
			t.Errorf("from %d to %d: %s, want %s", tc.from, tc.to, got, tc.want)
		}
	}
}

// Of a cluster about whose manifest nothing is known, every value that differs from the new default stays.
func TestUnknownManifestsCountAsEdited(t *testing.T) {
	e, err := newEdit("", "mode: ipvs\nlogLevel: info\n", "mode: auto\nlogLevel: info\n", "")
	if err != nil {
		t.Fatal(err)
	}
	text, s, err := e.merge()
	if err != nil || text != "mode: ipvs\nlogLevel: info\n" || fmt.Sprint(s.Kept) != "[mode: ipvs]" {
		t.Errorf("%q, %+v, %v", text, s, err)
	}
}
