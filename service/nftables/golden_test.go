package nftables

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/tools/txtar"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/source/manifest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Every file of testdata holds YAML, and what becomes of it on node1: problems,
// plan and nft text.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(ar.Files) == 0 || ar.Files[0].Name != "in.yaml" {
				t.Fatal("the first file must be in.yaml")
			}
			out := &txtar.Archive{Comment: ar.Comment, Files: append(ar.Files[:1:1], pipeline(t, ar.Files[0].Data)...)}
			got := txtar.Format(out)
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				want = got
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s is no longer so (-update writes it):\n%s", file, got)
			}
			accepted(t, out.Files[3].Data)
		})
	}
}

// pipeline is the way of a manifest, from YAML to nft text.
func pipeline(t *testing.T, yaml []byte) []txtar.File {
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
	local, _, bad := service.MakeLocal(snap, "node1")
	var words string
	for _, p := range append(problems, bad...) {
		words += fmt.Sprintln(p)
	}
	return []txtar.File{{Name: "problems", Data: []byte(words)}, {Name: "plan", Data: []byte(service.Text(plans))},
		{Name: "nft", Data: []byte(Text(plans, local))}}
}

// accepted has the real nft check our text, where there is one.
func accepted(t *testing.T, text []byte) {
	nft, err := exec.LookPath("nft")
	if err != nil || os.Geteuid() != 0 {
		t.Log("nft was not asked: it is not installed, or this is not root")
		return
	}
	file := filepath.Join(t.TempDir(), "x.nft")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	testnet.New(t, "nft").Run(nft, "-c", "-f", file)
}
