package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"wayleave.dev/internal/dockerarchive"
)

const (
	testVersion = "v0.7.1"
	testImage   = "registry.test/net/wayleave:" + testVersion
)

// inputs are what hack/release gives to the packer, at a new place and with a new date.
func inputs(t *testing.T) (dir string, flags []string) {
	t.Helper()
	dir = t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, body []byte) string {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, body, 0o644); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-time.Duration(len(dir)*1000+os.Getpid()) * time.Second)
		if err := os.Chtimes(file, old, old); err != nil {
			t.Fatal(err)
		}
		return file
	}
	images := []string{"images", "-image", testImage, "-out", filepath.Join(dir, "out", "wayleave-"+testVersion+
		"-image-oci.tar")}
	for _, arch := range []string{"arm64", "amd64"} {
		archive := filepath.Join(dir, "out", "wayleave-"+testVersion+"-image-"+arch+".tar")
		put("out/wayleave-"+testVersion+"-linux-"+arch, program)
		writeArchive(t, archive, arch)
		images = append(images, "-archive", arch+"="+archive)
		flags = append(flags, "-program", arch+"/wayleave="+self, "-debian", arch+"="+put(arch+".packages",
			[]byte("ipvsadm 1:1.31-1+b1 "+arch+" "+strings.Repeat("a", 64)+"\n")))
	}
	var out bytes.Buffer
	if err := run(images, &out); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "out"), append([]string{"pack", "-version", testVersion, "-image",
		strings.TrimSpace(out.String()), "-revision", "0123", "-date", "1700000000", "-out", filepath.Join(dir, "out"),
		"-changelog", put("CHANGELOG.md", []byte("# Changes\n\n## Unreleased\n\n- later\n\n## "+testVersion+
			" (2026-12-01)\n\n- this\n\n## v0.7.0\n\n- before\n"))}, flags...)
}

func writeArchive(t *testing.T, file, arch string) {
	t.Helper()
	var l dockerarchive.Layer
	if err := l.File("/wayleave", 0o755, bytes.Repeat([]byte(arch), 9999), dockerarchive.Attr{}); err != nil {
		t.Fatal(err)
	}
	if err := dockerarchive.WriteFile(file, dockerarchive.Image{Tags: []string{testImage}, Architecture: arch,
		Config: dockerarchive.Config{Entrypoint: []string{"/wayleave"}},
		Layers: []*dockerarchive.Layer{&l}}); err != nil {
		t.Fatal(err)
	}
}

func release(t *testing.T) string {
	t.Helper()
	dir, flags := inputs(t)
	if err := run(flags, io.Discard); err != nil {
		t.Fatal(err)
	}
	return dir
}

func content(t *testing.T, elem ...string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// Two releases of the same inputs are equal, whatever the folder and the date of the files.
func TestTwoReleasesAreEqual(t *testing.T) {
	one, two := content(t, release(t), sumsFile), content(t, release(t), sumsFile)
	if one != two || strings.Count(one, "\n") != 11 {
		t.Errorf("the first has\n%sthe second has\n%s", one, two)
	}
}

// The sums are those that sha256sum computes, and no file is left out.
func TestChecksumsCoverEveryFile(t *testing.T) {
	dir := release(t)
	check := exec.Command("sha256sum", "--check", "--strict", "--quiet", sumsFile)
	check.Dir = dir
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("sha256sum: %v: %s", err, out)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != sumsFile && !strings.Contains(content(t, dir, sumsFile), "  "+e.Name()+"\n") {
			t.Errorf("%s has no checksum", e.Name())
		}
	}
}

// unpacked returns the index of a layout's archive.
func unpacked(t *testing.T, file string) (v1.ImageIndex, *v1.IndexManifest) {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-C", dir, "-xf", file).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	return index, m
}

// The layout has one index with an image for each architecture; the manifest names it by its digest.
func TestTheLayoutHasBothArchitectures(t *testing.T) {
	dir := release(t)
	top, m := unpacked(t, filepath.Join(dir, "wayleave-"+testVersion+"-image-oci.tar"))
	if len(m.Manifests) != 1 || m.Manifests[0].Annotations[containerdName] != testImage {
		t.Fatalf("the layout lists %+v", m.Manifests)
	}
	index, err := top.ImageIndex(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var archs []string
	for _, d := range list.Manifests {
		archs = append(archs, d.Platform.OS+"/"+d.Platform.Architecture)
		if d.MediaType != types.OCIManifestSchema1 {
			t.Errorf("%s: media type %s", d.Digest, d.MediaType)
		}
	}
	if fmt.Sprint(archs) != "[linux/amd64 linux/arm64]" {
		t.Errorf("the index has %v", archs)
	}
	pinned := "image: " + testImage + "@" + m.Manifests[0].Digest.String() + "\n"
	if n := strings.Count(content(t, dir, "wayleave-"+testVersion+".yaml"), pinned); n != 5 {
		t.Errorf("the manifest has %d images %s", n, pinned)
	}
}

// The artefact of the chart has the media types that Helm pulls, and the same bytes as the archive.
func TestTheChartIsAnArtefact(t *testing.T) {
	dir := release(t)
	top, m := unpacked(t, filepath.Join(dir, "wayleave-chart-0.7.1-oci.tar"))
	img, err := top.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if manifest.Config.MediaType != chartConfig || len(manifest.Layers) != 1 ||
		manifest.Layers[0].MediaType != chartContent {
		t.Fatalf("the artefact is %+v", manifest)
	}
	chart := filepath.Join(dir, "wayleave-0.7.1.tgz")
	if got, err := sum(chart); err != nil || manifest.Layers[0].Digest.Hex != got {
		t.Errorf("the artefact has the chart %s, the archive is %s, %v", manifest.Layers[0].Digest, got, err)
	}
	raw, err := exec.Command("tar", "-xOzf", chart, "wayleave/Chart.yaml").Output()
	if err != nil || !strings.Contains(string(raw), "version: 0.7.1\nappVersion: v0.7.1\n") {
		t.Errorf("Chart.yaml: %s, %v", raw, err)
	}
}

// The bill names the modules that `go version -m` finds in the programs, and every Debian package.
func TestTheBillOfMaterialsIsComplete(t *testing.T) {
	var doc spdx
	dir := release(t)
	if err := json.Unmarshal([]byte(content(t, dir, "wayleave-"+testVersion+".spdx.json")), &doc); err != nil {
		t.Fatal(err)
	}
	ids, locators := map[string]bool{doc.SPDXID: true}, map[string]bool{}
	for _, p := range doc.Packages {
		if ids[p.SPDXID] {
			t.Errorf("%s is there twice", p.SPDXID)
		}
		ids[p.SPDXID] = true
		for _, r := range p.ExternalRefs {
			locators[r.Locator] = true
		}
	}
	for _, r := range doc.Relationships {
		if !ids[r.Element] || !ids[r.Related] {
			t.Errorf("%+v is about an unknown package", r)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "version", "-m", self).Output()
	if err != nil {
		t.Fatal(err)
	}
	modules := 0
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == "dep" {
			modules++
			if want := "pkg:golang/" + f[1] + "@" + f[2]; !locators[want] {
				t.Errorf("%s is missing", want)
			}
		}
	}
	if modules == 0 || !locators["pkg:deb/debian/ipvsadm@1:1.31-1+b1?arch=arm64"] {
		t.Errorf("%d modules; the bill has %v", modules, slices.Sorted(maps.Keys(locators)))
	}
}

// The provenance names every file but itself and the checksums, with their sums.
func TestProvenanceNamesEveryFile(t *testing.T) {
	dir := release(t)
	name := "wayleave-" + testVersion + ".provenance.json"
	var s statement
	if err := json.Unmarshal([]byte(content(t, dir, name)), &s); err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for _, a := range s.Subject {
		fmt.Fprintf(&lines, "%s  %s\n", a.Digest["sha256"], a.Name)
	}
	var want strings.Builder
	for line := range strings.Lines(content(t, dir, sumsFile)) {
		if !strings.HasSuffix(line, name+"\n") {
			want.WriteString(line)
		}
	}
	if lines.String() != want.String() {
		t.Errorf("the statement has\n%swant\n%s", lines.String(), want.String())
	}
	if s.Predicate.BuildDefinition.ResolvedDependencies[0].Digest["gitCommit"] != "0123" {
		t.Errorf("the statement is %+v", s)
	}
}

func TestChangesOfTheVersion(t *testing.T) {
	if got := content(t, release(t), "CHANGELOG-"+testVersion+".md"); got != "## v0.7.1 (2026-12-01)\n\n- this\n" {
		t.Errorf("the changes are %q", got)
	}
	for text, want := range map[string]string{"## v1.0.0\n\n## v0.9.0\nx": "", "## v1.0.00\nx": "", "": ""} {
		if got := sectionOf(text, "v1.0.0"); got != want {
			t.Errorf("%q has the section %q", text, got)
		}
	}
}

// What cannot be a release is refused by name, before a file is written.
func TestRefusedReleases(t *testing.T) {
	dir, flags := inputs(t)
	with := func(name, value string) []string {
		changed := slices.Clone(flags)
		changed[slices.Index(changed, name)+1] = value
		return changed
	}
	for want, args := range map[string][]string{
		"0.7.1":       with("-version", "0.7.1"),
		"v0.7":        with("-version", "v0.7"),
		"v0.7.1+x":    with("-version", "v0.7.1+x"),
		"NAME:TAG":    with("-image", "wayleave"),
		"## v0.8.0":   with("-version", "v0.8.0"),
		"KEY=FILE":    append(slices.Clone(flags), "-debian", "arm64=x"),
		"images|pack": {"publish"},
	} {
		if err := run(args, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, sumsFile)); !os.IsNotExist(err) {
		t.Errorf("a refused release left %s: %v", sumsFile, err)
	}
	file := filepath.Join(t.TempDir(), "x.tar")
	writeArchive(t, file, "arm64")
	if err := run([]string{"images", "-image", testImage, "-out", file + ".oci", "-archive", "amd64=" + file},
		io.Discard); err == nil || !strings.Contains(err.Error(), `found the architecture "arm64"`) {
		t.Errorf("an image of another architecture: %v", err)
	}
	if _, err := os.Stat(file + ".oci"); !os.IsNotExist(err) {
		t.Errorf("it was written: %v", err)
	}
}
