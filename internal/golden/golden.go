// Package golden compares the results of YAML files in each mode of the service proxy with reviewed files.
package golden

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/tools/txtar"

	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/source/manifest"
)

// Render returns a mode's text of plans.
type Render func(map[model.Name]service.Plan, service.NodeFacts) string

// Run processes testdata/*.txtar: each holds YAML (in.yaml), and the results on node1: problems, plan, and the mode's
// text under the name given. The flag -update, which the test's package defines, rewrites the files. check gets the
// text.
func Run(t *testing.T, name string, render Render, check func(t *testing.T, text []byte)) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	update := flag.Lookup("update")
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(ar.Files) == 0 || ar.Files[0].Name != "in.yaml" {
				t.Fatal("the first file must be in.yaml")
			}
			out := &txtar.Archive{Comment: ar.Comment, Files: append(ar.Files[:1:1], pipeline(t, ar.Files[0].Data,
				name, render)...)}
			got := txtar.Format(out)
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if update != nil && update.Value.String() == "true" {
				want = got
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s differs (-update rewrites it):\n%s", file, got)
			}
			check(t, out.Files[3].Data)
		})
	}
}

// pipeline converts a manifest to a mode's text.
func pipeline(t *testing.T, yaml []byte, name string, render Render) []txtar.File {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	problems, err := manifest.Read(store, "in.yaml", bytes.NewReader(yaml))
	if err != nil {
		t.Fatal(err)
	}
	snap, plans := store.Snapshot(), map[model.Name]service.Plan{}
	for s := range snap.Services() {
		p, ok, bad := service.Make(snap, s.Name, "node1")
		if problems = append(problems, bad...); ok {
			plans[s.Name] = p
		}
	}
	local, _, bad := service.MakeNodeFacts(snap, "node1")
	var words string
	for _, p := range append(problems, bad...) {
		words += fmt.Sprintln(p)
	}
	return []txtar.File{{Name: "problems", Data: []byte(words)}, {Name: "plan", Data: []byte(service.Text(plans))},
		{Name: name, Data: []byte(render(plans, local))}}
}
