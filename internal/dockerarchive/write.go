package dockerarchive

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Write writes one archive of all images. Equal layers, by pointer and date or by content, are included once.
func Write(w io.Writer, images ...Image) error {
	if len(images) == 0 {
		return errors.New("docker archive: no image given")
	}
	for _, img := range images {
		if err := img.check(); err != nil {
			return err
		}
	}
	a := &archive{out: tar.NewWriter(w), known: map[layerKey]layerSum{}, written: map[string]bool{}}
	var manifest []manifestEntry
	for _, img := range images {
		entry, err := a.image(img)
		if err != nil {
			return fmt.Errorf("image %s: %w", img.Tags[0], err)
		}
		manifest = append(manifest, entry)
	}
	blob, err := json.Marshal(manifest)
	if err != nil {
		return fmt.Errorf("docker archive: manifest: %w", err)
	}
	if err := a.blob("manifest.json", blob); err != nil {
		return fmt.Errorf("docker archive: manifest: %w", err)
	}
	if err := a.out.Close(); err != nil {
		return fmt.Errorf("docker archive: %w", err)
	}
	return nil
}

// WriteFile writes the archive to a file that appears under its name only
// when it is complete.
func WriteFile(name string, images ...Image) (err error) {
	file, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return fmt.Errorf("docker archive: %w", err)
	}
	defer func() {
		if err != nil {
			file.Close()
			os.Remove(file.Name())
		}
	}()
	if err := Write(file, images...); err != nil {
		return err
	}
	if err := file.Chmod(0o644); err != nil {
		return fmt.Errorf("docker archive: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("docker archive: %w", err)
	}
	if err := os.Rename(file.Name(), name); err != nil {
		return fmt.Errorf("docker archive: %w", err)
	}
	return nil
}

type layerKey struct {
	layer *Layer
	at    time.Time
}

type layerSum struct {
	digest string
	size   int64
}

// archive is one archive being written.
type archive struct {
	out     *tar.Writer
	known   map[layerKey]layerSum // layers measured
	written map[string]bool       // names in the archive
}

func (a *archive) image(img Image) (manifestEntry, error) {
	var digests []string
	for _, layer := range img.Layers {
		digest, err := a.layer(layer, img.created())
		if err != nil {
			return manifestEntry{}, err
		}
		digests = append(digests, digest)
	}
	blob, entry, err := img.render(digests)
	if err != nil {
		return manifestEntry{}, err
	}
	return entry, a.blob(entry.Config, blob)
}

// layer writes a layer and returns its digest. The tar header needs its size and the name its digest, so it is produced
// twice; both must be equal.
func (a *archive) layer(layer *Layer, at time.Time) (string, error) {
	key := layerKey{layer, at}
	sum, ok := a.known[key]
	if !ok {
		meter := newMeter(io.Discard)
		if err := layer.write(meter, at); err != nil {
			return "", err
		}
		sum = meter.sum()
		a.known[key] = sum
	}
	name := layerName(sum.digest)
	if a.written[name] {
		return sum.digest, nil
	}
	a.written[name] = true
	if err := a.out.WriteHeader(header(name, sum.size)); err != nil {
		return "", err
	}
	meter := newMeter(a.out)
	if err := layer.write(meter, at); err != nil {
		return "", err
	}
	if meter.sum() != sum {
		return "", errors.New("layer: a file changed while the archive was written")
	}
	return sum.digest, nil
}

func (a *archive) blob(name string, content []byte) error {
	if a.written[name] {
		return nil
	}
	a.written[name] = true
	if err := a.out.WriteHeader(header(name, int64(len(content)))); err != nil {
		return err
	}
	_, err := a.out.Write(content)
	return err
}

func header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}
}

// meter forwards bytes, and counts and hashes them.
type meter struct {
	to   io.Writer
	hash hash.Hash
	size int64
}

func newMeter(to io.Writer) *meter { return &meter{to: to, hash: sha256.New()} }

func (m *meter) Write(p []byte) (int, error) {
	n, err := m.to.Write(p)
	m.hash.Write(p[:n])
	m.size += int64(n)
	return n, err
}

func (m *meter) sum() layerSum {
	return layerSum{digest: hex.EncodeToString(m.hash.Sum(nil)), size: m.size}
}
