package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"wayleave.dev/internal/dockerarchive"
)

// archive writes an image of one program.
func archive(t *testing.T) string {
	t.Helper()
	var layer dockerarchive.Layer
	file := filepath.Join(t.TempDir(), "x.tar")
	if err := layer.File("/program", 0o755|fs.ModeSetuid, bytes.Repeat([]byte("program "), 10_000),
		dockerarchive.Attr{UID: 7}); err != nil {
		t.Fatal(err)
	}
	if err := dockerarchive.WriteFile(file, dockerarchive.Image{Tags: []string{"wayleave.dev/wayleave:dev"},
		Architecture: "arm64", Config: dockerarchive.Config{Entrypoint: []string{"/program"}},
		Layers: []*dockerarchive.Layer{&layer}}); err != nil {
		t.Fatal(err)
	}
	return file
}

// serve runs a registry, whose requests pass through a function first, and returns its address.
func serve(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	s := httptest.NewServer(wrap(registry.New(registry.Logger(log.New(io.Discard, "", 0)))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func open(h http.Handler) http.Handler { return h }

// A registry and a reader of another make have the image that was packed; to push it again sends no layer.
func TestTheImageIsPushed(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	uploads := 0
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost && strings.Contains(r.URL.Path, "/blobs/uploads") {
				uploads++
			}
			h.ServeHTTP(w, r)
		})
	})
	file := archive(t)
	to := host + "/net/wayleave:1.2"
	pushed, err := push(t.Context(), file, to)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewDigest(pushed)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	config, err := img.ConfigFile()
	if err != nil || config.Architecture != "arm64" || config.OS != "linux" || len(config.Config.Entrypoint) != 1 ||
		config.Config.Entrypoint[0] != "/program" {
		t.Errorf("config %+v, %v", config, err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	if raw, err := io.ReadAll(content); err != nil || !bytes.Contains(raw, []byte("program program")) {
		t.Errorf("the layer has %d bytes, %v", len(raw), err)
	}
	before := uploads
	if again, err := push(t.Context(), file, to); err != nil || again != pushed || uploads != before {
		t.Errorf("pushed again: %s, %v, %d uploads more", again, err, uploads-before)
	}
}

func TestPushLogsIn(t *testing.T) {
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, ok := r.BasicAuth(); !ok || user != "ann" || password != "secret" {
				w.Header().Set("WWW-Authenticate", "Basic")
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("HOME", dir)
	to := host + "/wayleave:dev"
	if _, err := push(t.Context(), archive(t), to); err == nil || !strings.Contains(err.Error(), to) {
		t.Errorf("without credentials: %v", err)
	}
	config := `{"auths":{"` + host + `":{"auth":"YW5uOnNlY3JldA=="}}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := push(t.Context(), archive(t), to); err != nil {
		t.Error(err)
	}
}

func TestPushSaysWhatIsWrong(t *testing.T) {
	host := serve(t, open)
	file := archive(t)
	for _, tc := range []struct{ archive, to, want string }{
		{file, host + "/wayleave", host + "/wayleave"}, // no tag
		{file, "UPPER/x:1", "UPPER/x:1"},
		{filepath.Join(t.TempDir(), "none.tar"), host + "/wayleave:1", "none.tar"},
	} {
		if _, err := push(t.Context(), tc.archive, tc.to); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("push %s %s: %v", tc.archive, tc.to, err)
		}
	}
	if err := run(t.Context(), nil); err == nil {
		t.Error("no arguments are taken")
	}
}

// layoutOf writes an archive of an OCI image layout with one entry.
func layoutOf(t *testing.T, index v1.ImageIndex) string {
	t.Helper()
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendIndex(index); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "layout.tar")
	if out, err := exec.Command("tar", "-C", dir, "-cf", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	return file
}

// Of a layout, the image of every architecture is pushed, below one name.
func TestAnImageOfSeveralArchitecturesIsPushed(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	index, err := random.Index(1000, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	to := serve(t, open) + "/net/wayleave:v1.2.3"
	pushed, err := push(t.Context(), layoutOf(t, index), to)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewDigest(pushed)
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Error(err)
	}
	have, err := got.Digest()
	if want, _ := index.Digest(); err != nil || have != want {
		t.Errorf("the registry has %s, %v", have, err)
	}
}

// A layout whose files would be written outside of the folder is refused.
func TestALayoutStaysInItsFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "bad.tar")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(out)
	for _, entry := range []string{"oci-layout", "../outside"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: entry, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), out.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := push(t.Context(), file, serve(t, open)+"/x:1"); err == nil || !strings.Contains(err.Error(),
		"../outside") {
		t.Errorf("got %v", err)
	}
}
