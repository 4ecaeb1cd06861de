package main

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Annotations of the only entry of a layout. Readers of layouts take the first, containerd takes the second.
const (
	refName        = "org.opencontainers.image.ref.name"
	containerdName = "io.containerd.image.name"
)

// imageLayout writes an archive of an OCI image layout that has the image for each architecture, and returns the digest
// of its index, under which a registry will have the image.
func imageLayout(file, image string, archives pairs) (v1.Hash, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range slices.Sorted(maps.Keys(archives)) {
		img, err := ociImage(archives[arch])
		if err != nil {
			return v1.Hash{}, fmt.Errorf("%s: %w", archives[arch], err)
		}
		cfg, err := img.ConfigFile()
		if err != nil {
			return v1.Hash{}, fmt.Errorf("%s: %w", archives[arch], err)
		}
		if cfg.Architecture != arch {
			return v1.Hash{}, fmt.Errorf("%s: found the architecture %q, want %q", archives[arch],
				cfg.Architecture, arch)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: cfg.OS, Architecture: arch}}})
	}
	digest, err := index.Digest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("index: %w", err)
	}
	return digest, writeLayout(file, func(to layout.Path) error {
		return to.AppendIndex(index, layout.WithAnnotations(map[string]string{
			refName: image[strings.LastIndex(image, ":")+1:], containerdName: image}))
	})
}

// ociImage reads a docker-archive as an image with the media types of OCI.
func ociImage(file string) (v1.Image, error) {
	docker, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		return nil, err
	}
	cfg, err := docker.ConfigFile()
	if err != nil {
		return nil, err
	}
	layers, err := docker.Layers()
	if err != nil {
		return nil, err
	}
	bare := cfg.DeepCopy()
	bare.RootFS.DiffIDs, bare.History = nil, nil
	img, err := mutate.ConfigFile(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1),
		types.OCIConfigJSON), bare)
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		oci, err := tarball.LayerFromOpener(l.Uncompressed, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: oci}); err != nil {
			return nil, err
		}
	}
	return img, nil
}

// writeLayout writes the archive of a layout that fill fills.
func writeLayout(file string, fill func(layout.Path) error) error {
	dir, err := os.MkdirTemp("", "layout")
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer os.RemoveAll(dir)
	to, err := layout.Write(dir, mutate.IndexMediaType(empty.Index, types.OCIImageIndex))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := fill(to); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := tarFolder(file, dir); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// tarFolder writes the files of a folder in the order of their names, without times and owners.
func tarFolder(file, dir string) (err error) {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() {
		if closed := out.Close(); err == nil {
			err = closed
		}
	}()
	w := tar.NewWriter(out)
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
		}
		return addFile(w, name, path)
	})
	if err != nil {
		return err
	}
	return w.Close()
}

func addFile(w *tar.Writer, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644,
		Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}
