package dockerarchive

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unpack reads a tar into headers and contents by name.
func unpack(t *testing.T, r io.Reader) (map[string]*tar.Header, map[string][]byte) {
	t.Helper()
	headers, contents := map[string]*tar.Header{}, map[string][]byte{}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return headers, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		if headers[h.Name] != nil {
			t.Fatalf("%s is in the archive twice", h.Name)
		}
		data, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		headers[h.Name], contents[h.Name] = h, data
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func sample(t *testing.T, dir string, reverse bool) *Layer {
	t.Helper()
	layer := &Layer{}
	steps := []func() error{
		func() error { return layer.Dir("/tmp", 0o777|fs.ModeSticky, Attr{}) },
		func() error { return layer.File("/etc/a.conf", 0o600, []byte("hello"), Attr{UID: 7, GID: 8}) },
		func() error { return layer.Symlink("/bin/sh", "../usr/bin/bash") },
		func() error {
			return layer.Copy("/usr/bin/tool", 0o755|fs.ModeSetuid, filepath.Join(dir, "tool"), Attr{})
		},
		func() error { return layer.Tree("/opt/tree", filepath.Join(dir, "tree"), Attr{UID: 5}) },
	}
	for i := range steps {
		if reverse {
			i = len(steps) - 1 - i
		}
		must(t, steps[i]())
	}
	return layer
}

func sources(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "tool"), []byte("#!tool"), 0o644),
		os.MkdirAll(filepath.Join(dir, "tree/sub"), 0o755),
		os.Chmod(filepath.Join(dir, "tree/sub"), 0o750),
		os.WriteFile(filepath.Join(dir, "tree/sub/x"), []byte("x"), 0o755),
		os.Symlink("sub/x", filepath.Join(dir, "tree/link")))
	return dir
}

func TestArchiveHoldsWhatWasPut(t *testing.T) {
	img := Image{Tags: []string{"example.org/a:1", "example.org/b:2"}, Architecture: "arm64",
		Config: Config{Entrypoint: []string{"/usr/bin/tool"}, Cmd: []string{"run"}, Env: []string{"A=b"},
			User: "65532", WorkingDir: "/opt", Labels: map[string]string{"k": "v"}},
		Layers: []*Layer{sample(t, sources(t), false)}}
	var buf bytes.Buffer
	must(t, Write(&buf, img))
	_, files := unpack(t, &buf)

	var manifest []manifestEntry
	must(t, json.Unmarshal(files["manifest.json"], &manifest))
	if len(manifest) != 1 || strings.Join(manifest[0].RepoTags, " ") != "example.org/a:1 example.org/b:2" {
		t.Fatalf("manifest: %+v", manifest)
	}
	var config configFile
	must(t, json.Unmarshal(files[manifest[0].Config], &config))
	if config.Architecture != "arm64" || config.OS != "linux" || config.Config.User != "65532" ||
		config.Config.Entrypoint[0] != "/usr/bin/tool" || config.Config.Labels["k"] != "v" {
		t.Errorf("config: %+v", config)
	}
	blob := files[manifest[0].Layers[0]]
	sum := sha256.Sum256(blob)
	if got, want := config.RootFS.DiffIDs[0], "sha256:"+hex.EncodeToString(sum[:]); got != want {
		t.Errorf("diff ID %s, the layer is %s", got, want)
	}
	checkLayer(t, blob)
}

func checkLayer(t *testing.T, blob []byte) {
	t.Helper()
	headers, contents := unpack(t, bytes.NewReader(blob))
	for _, want := range []struct {
		name     string
		mode     int64
		uid, gid int
		content  string
		link     string
	}{
		{name: "tmp/", mode: 0o1777},
		{name: "etc/", mode: 0o755},
		{name: "etc/a.conf", mode: 0o600, uid: 7, gid: 8, content: "hello"},
		{name: "bin/sh", mode: 0o777, link: "../usr/bin/bash"},
		{name: "usr/bin/tool", mode: 0o4755, content: "#!tool"},
		{name: "opt/tree/sub/", mode: 0o750, uid: 5},
		{name: "opt/tree/sub/x", mode: 0o755, uid: 5, content: "x"},
		{name: "opt/tree/link", mode: 0o777, link: "sub/x"},
	} {
		h := headers[want.name]
		if h == nil {
			t.Errorf("%s is missing", want.name)
			continue
		}
		if h.Mode != want.mode || h.Uid != want.uid || h.Gid != want.gid || h.Linkname != want.link ||
			string(contents[want.name]) != want.content || h.ModTime.Unix() != 0 || h.Uname != "" {
			t.Errorf("%s: got %+v content %q, want %+v", want.name, h, contents[want.name], want)
		}
	}
}

func TestSameInputGivesSameBytes(t *testing.T) {
	one, two := sources(t), sources(t)
	must(t, os.Chtimes(filepath.Join(two, "tool"), time.Now(), time.Now().Add(-time.Hour)))
	var a, b bytes.Buffer
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600))
	must(t, Write(&a, Image{Tags: []string{"a:1"}, Created: at, Architecture: "amd64",
		Layers: []*Layer{sample(t, one, false)}}),
		Write(&b, Image{Tags: []string{"a:1"}, Created: at.UTC(), Architecture: "amd64",
			Layers: []*Layer{sample(t, two, true)}}))
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the archives differ")
	}
}

func TestEqualLayersAreWrittenOnce(t *testing.T) {
	dir := sources(t)
	shared := sample(t, dir, false)
	var buf bytes.Buffer
	must(t, Write(&buf,
		Image{Tags: []string{"a:1"}, Architecture: "amd64", Layers: []*Layer{shared}},
		Image{Tags: []string{"b:1"}, Architecture: "amd64", Layers: []*Layer{shared},
			Config: Config{Cmd: []string{"x"}}},
		Image{Tags: []string{"c:1"}, Architecture: "amd64", Layers: []*Layer{sample(t, dir, true)}}))
	_, files := unpack(t, &buf)
	if len(files) != 1+2+1 { // manifest, two configs (a and c are the same), one layer
		t.Errorf("%d files in the archive", len(files))
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	must(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	clash := &Layer{}
	must(t, clash.File("/a", 0o644, nil, Attr{}), clash.File("/a/b", 0o644, nil, Attr{}))
	good := Image{Tags: []string{"a:1"}, Architecture: "amd64", Layers: []*Layer{{}}}
	change := func(f func(*Image)) Image { img := good; f(&img); return img }
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"relative path":   {(&Layer{}).Dir("x", 0o755, Attr{}), `"x"`},
		"path with ..":    {(&Layer{}).Dir("/x/../y", 0o755, Attr{}), `/x/../y`},
		"file as root":    {(&Layer{}).File("/", 0o755, nil, Attr{}), "root"},
		"missing source":  {(&Layer{}).Copy("/x", 0o755, filepath.Join(dir, "none"), Attr{}), "none"},
		"source a folder": {(&Layer{}).Copy("/x", 0o755, dir, Attr{}), "regular"},
		"a pipe":          {(&Layer{}).Tree("/x", dir, Attr{}), "pipe"},
		"empty link":      {(&Layer{}).Symlink("/x", ""), "target"},
		"file above file": {Write(io.Discard, change(func(i *Image) { i.Layers = []*Layer{clash} })), "/a/b"},
		"no tag":          {Write(io.Discard, change(func(i *Image) { i.Tags = nil })), "Tags"},
		"bad tag":         {Write(io.Discard, change(func(i *Image) { i.Tags = []string{"a.b:5/c"} })), "a.b:5/c"},
		"no architecture": {Write(io.Discard, change(func(i *Image) { i.Architecture = "" })), "Architecture"},
		"no layer":        {Write(io.Discard, change(func(i *Image) { i.Layers = nil })), "Layers"},
		"no image":        {Write(io.Discard), "no image"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error naming %s", name, c.err, c.want)
		}
	}
}

func TestChangedSourceIsAnErrorAndLeavesNoFile(t *testing.T) {
	dir := sources(t)
	layer := sample(t, dir, false)
	must(t, os.WriteFile(filepath.Join(dir, "tool"), []byte("longer than before"), 0o644))
	out := t.TempDir()
	err := WriteFile(filepath.Join(out, "x.tar"), Image{Tags: []string{"a:1"}, Architecture: "amd64",
		Layers: []*Layer{layer}})
	if err == nil || !strings.Contains(err.Error(), "usr/bin/tool") {
		t.Errorf("got %v, want an error naming the file", err)
	}
	left, err := os.ReadDir(out)
	must(t, err)
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
