// Package dockerarchive writes container images as docker-archive files (the format of "docker save"), so that an image
// can be built and imported without a daemon or a registry.
//
// Invariants: the same input gives the same bytes, whatever the time, the user, the umask or the order of the calls;
// the archive contains nothing of the building machine except the content and mode of the named files; file contents
// are read when the archive is written, never held in memory.
package dockerarchive

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Image is one image: its configuration, and the layers of its file system, lowest first.
type Image struct {
	// Tags are full references such as "registry.k8s.io/pause:3.10". Some
	// runtimes do not find an image by a name without its registry.
	Tags []string
	// Architecture is GOARCH's name: amd64, arm64.
	Architecture string
	// Created is the image's date and that of its files; the zero value is 1970.
	Created time.Time
	Config  Config
	Layers  []*Layer
}

// Config defines how a container of the image is started. The fields are those of the OCI image specification
// (config.md).
type Config struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type configFile struct {
	Created      string `json:"created"`
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Config       Config `json:"config"`
	RootFS       rootFS `json:"rootfs"`
}

// manifestEntry is an element of manifest.json.
type manifestEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// check reports invalid fields before anything is written.
func (img Image) check() error {
	if len(img.Tags) == 0 {
		return errors.New("image: Tags: none given")
	}
	for _, tag := range img.Tags {
		name := tag[strings.LastIndex(tag, "/")+1:]
		if strings.ContainsAny(tag, " \t\n") || !strings.Contains(name, ":") || strings.HasSuffix(name, ":") {
			return fmt.Errorf("image: Tags: %q is not NAME:TAG", tag)
		}
	}
	if img.Architecture == "" {
		return fmt.Errorf("image %s: Architecture: none given", img.Tags[0])
	}
	if len(img.Layers) == 0 {
		return fmt.Errorf("image %s: Layers: none given", img.Tags[0])
	}
	return nil
}

// render returns the config blob, its name in the archive and the manifest entry, given the digests of the layers.
func (img Image) render(digests []string) ([]byte, manifestEntry, error) {
	file := configFile{
		Created:      img.created().Format(time.RFC3339),
		Architecture: img.Architecture,
		OS:           "linux",
		Config:       img.Config,
		RootFS:       rootFS{Type: "layers"},
	}
	entry := manifestEntry{RepoTags: slices.Clone(img.Tags)}
	for _, digest := range digests {
		file.RootFS.DiffIDs = append(file.RootFS.DiffIDs, "sha256:"+digest)
		entry.Layers = append(entry.Layers, layerName(digest))
	}
	blob, err := json.Marshal(file)
	if err != nil {
		return nil, entry, fmt.Errorf("image %s: config: %w", img.Tags[0], err)
	}
	sum := sha256.Sum256(blob)
	entry.Config = hex.EncodeToString(sum[:]) + ".json"
	return blob, entry, nil
}

func (img Image) created() time.Time {
	if img.Created.IsZero() {
		return time.Unix(0, 0).UTC()
	}
	return img.Created.UTC().Truncate(time.Second)
}

func layerName(digest string) string { return digest + "/layer.tar" }
