package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"wayleave.dev/internal/dockerarchive"
)

func archive(t *testing.T, file, content string, tags ...string) {
	t.Helper()
	layer := &dockerarchive.Layer{}
	if err := layer.File("/a", 0o644, []byte(content), dockerarchive.Attr{}); err != nil {
		t.Fatal(err)
	}
	err := dockerarchive.WriteFile(file, dockerarchive.Image{Tags: tags, Architecture: "amd64",
		Layers: []*dockerarchive.Layer{layer}})
	if err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, url string) (int, []byte, http.Header) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, data, response.Header
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func TestPull(t *testing.T) {
	dir := t.TempDir()
	server := httptest.NewServer(New(dir))
	t.Cleanup(server.Close)
	url := server.URL + "/v2/"
	if code, _, _ := get(t, url+"library/busybox/manifests/latest"); code != http.StatusNotFound {
		t.Errorf("before there is an archive: %d", code)
	}
	archive(t, filepath.Join(dir, "one.tar"), "x", "docker.io/library/busybox:latest", "example.org:5000/a/b:1")
	for _, name := range []string{"library/busybox/manifests/latest", "a/b/manifests/1"} {
		code, data, header := get(t, url+name)
		if code != http.StatusOK || header.Get("Docker-Content-Digest") != digest(data) {
			t.Fatalf("%s: %d, %v", name, code, header)
		}
		var m manifest
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		for _, d := range append(m.Layers, m.Config) {
			code, blob, _ := get(t, url+"library/busybox/blobs/"+d.Digest)
			if code != http.StatusOK || digest(blob) != d.Digest || int64(len(blob)) != d.Size {
				t.Errorf("%s: %d, %d bytes, want %+v", d.MediaType, code, len(blob), d)
			}
		}
		if code, again, _ := get(t, url+"a/b/manifests/"+digest(data)); code != http.StatusOK ||
			string(again) != string(data) {
			t.Errorf("by digest: %d", code)
		}
	}
}

func TestLaterArchivesAreFound(t *testing.T) {
	dir := t.TempDir()
	server := httptest.NewServer(New(dir))
	t.Cleanup(server.Close)
	archive(t, filepath.Join(dir, "1.tar"), "x", "r.example/a:1")
	_, first, _ := get(t, server.URL+"/v2/a/manifests/1")
	archive(t, filepath.Join(dir, "2.tar"), "y", "r.example/a:1", "r.example/b:1")
	_, second, _ := get(t, server.URL+"/v2/a/manifests/1")
	code, _, _ := get(t, server.URL+"/v2/b/manifests/1")
	if code != http.StatusOK || string(first) == string(second) {
		t.Errorf("the tag of a later archive: %d, changed: %t", code, string(first) != string(second))
	}
	archive(t, filepath.Join(dir, "2.tar"), "written anew, and longer", "r.example/a:1")
	if _, third, _ := get(t, server.URL+"/v2/a/manifests/1"); string(third) == string(second) {
		t.Error("an archive that was written anew is not seen")
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	server := httptest.NewServer(New(dir))
	t.Cleanup(server.Close)
	response, err := http.Post(server.URL+"/v2/a/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a push: %d", response.StatusCode)
	}
	if err := os.WriteFile(filepath.Join(dir, "bad.tar"), []byte("no archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, text, _ := get(t, server.URL+"/v2/a/manifests/1"); code != http.StatusInternalServerError {
		t.Errorf("with a broken archive: %d %s", code, text)
	}
}
