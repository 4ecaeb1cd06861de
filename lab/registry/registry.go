// Package registry serves the images of docker-archive files over the registry protocol (OCI distribution
// specification, pull only), so that "image: busybox" works on nodes without access to a registry: the container
// runtime is configured to use it for every name.
package registry

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
)

const (
	manifestType = "application/vnd.docker.distribution.manifest.v2+json"
	configType   = "application/vnd.docker.container.image.v1+json"
	layerType    = "application/vnd.docker.image.rootfs.diff.tar"
)

// Registry serves the archives in a folder. Archives that are added later are found on request. It is safe for
// concurrent use.
type Registry struct {
	dir string

	mu    sync.Mutex
	seen  map[string]bool
	tags  map[string]string // repository:tag → digest of the manifest
	blobs map[string]blob   // by digest
}

// blob is a range of a file, or bytes.
type blob struct {
	kind   string
	file   string
	offset int64
	size   int64
	data   []byte
}

// New returns a registry of the archives in dir.
func New(dir string) *Registry {
	return &Registry{dir: dir, seen: map[string]bool{}, tags: map[string]string{}, blobs: map[string]blob{}}
}

var path = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs)/([^/]+)$`)

// ServeHTTP answers GET and HEAD of manifests and blobs.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		http.Error(w, "this registry is read-only", http.StatusMethodNotAllowed)
		return
	}
	if req.URL.Path == "/v2/" {
		return
	}
	match := path.FindStringSubmatch(req.URL.Path)
	if match == nil {
		http.NotFound(w, req)
		return
	}
	digest, found, err := r.find(match[1], match[2], match[3])
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if digest == "" {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not among the images of the lab"}]}`)
		return
	}
	if err := serve(w, req, digest, found); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func serve(w http.ResponseWriter, req *http.Request, digest string, b blob) error {
	w.Header().Set("Content-Type", b.kind)
	w.Header().Set("Docker-Content-Digest", digest)
	var content io.ReadSeeker = bytes.NewReader(b.data)
	if b.file != "" {
		file, err := os.Open(b.file)
		if err != nil {
			return err
		}
		defer file.Close()
		content = io.NewSectionReader(file, b.offset, b.size)
	}
	size, err := content.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := content.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w.Header().Set("Content-Length", fmt.Sprint(size))
	if req.Method == http.MethodGet {
		_, _ = io.Copy(w, content) // a client may disconnect
	}
	return nil
}

// find returns the digest and content of the requested object; no digest if there is none.
func (r *Registry) find(repository, kind, reference string) (string, blob, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.scan(); err != nil {
		return "", blob{}, err
	}
	if kind == "manifests" && !strings.Contains(reference, ":") {
		reference = r.tags[repository+":"+reference]
	}
	b, ok := r.blobs[reference]
	if !ok {
		return "", blob{}, nil
	}
	return reference, b, nil
}

// scan reads archives not read before.
func (r *Registry) scan() error {
	files, err := filepath.Glob(filepath.Join(r.dir, "*.tar"))
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	for _, file := range files {
		real, err := filepath.EvalSymlinks(file)
		if err != nil {
			return fmt.Errorf("registry: %w", err)
		}
		// A rewritten archive counts as another one.
		info, err := os.Stat(real)
		if err != nil {
			return fmt.Errorf("registry: %w", err)
		}
		version := fmt.Sprintf("%s %d %d", real, info.Size(), info.ModTime().UnixNano())
		if r.seen[version] {
			continue
		}
		if err := r.read(real); err != nil {
			return fmt.Errorf("registry: %s: %w", real, err)
		}
		r.seen[version] = true
	}
	return nil
}

func (r *Registry) read(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	entries := map[string]blob{}
	in := tar.NewReader(file)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		offset, err := file.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		b := blob{file: name, offset: offset, size: header.Size}
		if strings.HasSuffix(header.Name, ".json") {
			if b.data, err = io.ReadAll(in); err != nil {
				return err
			}
		}
		entries[header.Name] = b
	}
	return r.index(entries)
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"`
	Digest    string `json:"digest"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

// index creates a manifest of each image in an archive.
func (r *Registry) index(entries map[string]blob) error {
	var images []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(entries["manifest.json"].data, &images); err != nil {
		return fmt.Errorf("manifest.json: %w", err)
	}
	for _, image := range images {
		config, ok := entries[image.Config]
		if !ok {
			return fmt.Errorf("manifest.json: Config %q is not in the archive", image.Config)
		}
		var parsed struct {
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			} `json:"rootfs"`
		}
		if err := json.Unmarshal(config.data, &parsed); err != nil {
			return fmt.Errorf("%s: %w", image.Config, err)
		}
		if len(parsed.RootFS.DiffIDs) != len(image.Layers) {
			return fmt.Errorf("%s: %d diff_ids for %d layers", image.Config, len(parsed.RootFS.DiffIDs),
				len(image.Layers))
		}
		m := manifest{SchemaVersion: 2, MediaType: manifestType, Config: r.add(configType, config)}
		for i, name := range image.Layers {
			layer, ok := entries[name]
			if !ok {
				return fmt.Errorf("manifest.json: layer %q is not in the archive", name)
			}
			layer.kind = layerType
			r.blobs[parsed.RootFS.DiffIDs[i]] = layer
			m.Layers = append(m.Layers, descriptor{layerType, layer.size, parsed.RootFS.DiffIDs[i]})
		}
		data, err := json.Marshal(m)
		if err != nil {
			return err
		}
		digest := r.add(manifestType, blob{data: data}).Digest
		for _, tag := range image.RepoTags {
			r.tags[repository(tag)] = digest
		}
	}
	return nil
}

// add keeps small content in memory.
func (r *Registry) add(kind string, b blob) descriptor {
	sum := sha256.Sum256(b.data)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	r.blobs[digest] = blob{kind: kind, data: slices.Clone(b.data)}
	return descriptor{kind, int64(len(b.data)), digest}
}

// repository removes the registry's name from a reference: a client that uses a mirror requests only the rest.
func repository(tag string) string {
	first, rest, ok := strings.Cut(tag, "/")
	if ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		return rest
	}
	return tag
}
