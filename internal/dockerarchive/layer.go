package dockerarchive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Layer is a set of files. Paths are absolute paths in the image; parent directories exist implicitly (0755, root). A
// later entry at a path replaces an earlier one. The zero value is an empty layer. A Layer is not safe for concurrent
// changes.
type Layer struct {
	entries map[string]entry
}

type entry struct {
	kind     byte // tar.TypeDir, TypeReg, TypeSymlink
	mode     fs.FileMode
	uid, gid int
	target   string // of a symlink
	source   string // file on disk, if content is nil
	content  []byte
	size     int64
}

// Attr is the owner of an entry. The zero value is root.
type Attr struct {
	UID, GID int
}

// Dir adds a directory.
func (l *Layer) Dir(name string, mode fs.FileMode, attr Attr) error {
	return l.put(name, entry{kind: tar.TypeDir, mode: mode, uid: attr.UID, gid: attr.GID})
}

// File adds a regular file of the given content.
func (l *Layer) File(name string, mode fs.FileMode, content []byte, attr Attr) error {
	if content == nil {
		content = []byte{}
	}
	return l.put(name, entry{kind: tar.TypeReg, mode: mode, uid: attr.UID, gid: attr.GID,
		content: content, size: int64(len(content))})
}

// Symlink adds a symbolic link.
func (l *Layer) Symlink(name, target string) error {
	if target == "" {
		return fmt.Errorf("layer: symlink %s: empty target", name)
	}
	return l.put(name, entry{kind: tar.TypeSymlink, mode: 0o777, target: target})
}

// Copy adds the regular file at source on this machine. Symbolic links are
// followed. The file must not change until the archive is written.
func (l *Layer) Copy(name string, mode fs.FileMode, source string, attr Attr) error {
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("layer: %s: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("layer: %s: %s is not a regular file", name, source)
	}
	return l.put(name, entry{kind: tar.TypeReg, mode: mode, uid: attr.UID, gid: attr.GID,
		source: source, size: info.Size()})
}

// Tree adds everything below the directory source at name, with its modes, owned by attr: directories, regular files
// and symbolic links. Anything else is an error.
func (l *Layer) Tree(name, source string, attr Attr) error {
	return filepath.WalkDir(source, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("layer: %s: %w", name, err)
		}
		rel, err := filepath.Rel(source, file)
		if err != nil {
			return fmt.Errorf("layer: %s: %w", name, err)
		}
		return l.add(path.Join(name, filepath.ToSlash(rel)), file, d, attr)
	})
}

func (l *Layer) add(name, file string, d fs.DirEntry, attr Attr) error {
	info, err := d.Info()
	if err != nil {
		return fmt.Errorf("layer: %s: %w", name, err)
	}
	switch {
	case d.IsDir():
		return l.Dir(name, info.Mode(), attr)
	case info.Mode().IsRegular():
		return l.Copy(name, info.Mode(), file, attr)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(file)
		if err != nil {
			return fmt.Errorf("layer: %s: %w", name, err)
		}
		return l.Symlink(name, target)
	}
	return fmt.Errorf("layer: %s: %s is neither file, directory nor symlink", name, file)
}

func (l *Layer) put(name string, e entry) error {
	if !strings.HasPrefix(name, "/") || slices.Contains(strings.Split(name, "/"), "..") ||
		strings.ContainsRune(name, 0) {
		return fmt.Errorf("layer: path %q: must be absolute and without parent directories", name)
	}
	clean := strings.TrimPrefix(path.Clean(name), "/")
	if clean == "" {
		if e.kind == tar.TypeDir {
			return nil // the root of an image always exists
		}
		return fmt.Errorf("layer: path %q: only a directory can be the root", name)
	}
	if l.entries == nil {
		l.entries = make(map[string]entry)
	}
	l.entries[clean] = e
	return nil
}

// complete returns the entries with their parent directories. A parent that is not a directory is an error, since
// runtimes treat it differently.
func (l *Layer) complete() (map[string]entry, error) {
	all := maps.Clone(l.entries)
	if all == nil {
		all = map[string]entry{}
	}
	for name := range l.entries {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if above, ok := all[dir]; !ok {
				all[dir] = entry{kind: tar.TypeDir, mode: 0o755}
			} else if above.kind != tar.TypeDir {
				return nil, fmt.Errorf("layer: /%s: /%s above it is not a directory", name, dir)
			}
		}
	}
	return all, nil
}

// write writes the layer as a tar, sorted by path; every file gets the same date.
func (l *Layer) write(w io.Writer, at time.Time) error {
	all, err := l.complete()
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := all[name].write(out, name, at); err != nil {
			return fmt.Errorf("layer: /%s: %w", name, err)
		}
	}
	return out.Close()
}

func (e entry) write(out *tar.Writer, name string, at time.Time) error {
	header := &tar.Header{Typeflag: e.kind, Name: name, Linkname: e.target, Size: e.size,
		Mode: tarMode(e.mode), Uid: e.uid, Gid: e.gid, ModTime: at}
	if e.kind == tar.TypeDir {
		header.Name += "/"
	}
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	if e.kind != tar.TypeReg {
		return nil
	}
	in := io.Reader(bytes.NewReader(e.content))
	if e.content == nil {
		file, err := os.Open(e.source)
		if err != nil {
			return err
		}
		defer file.Close()
		in = file
	}
	n, err := io.Copy(out, in)
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != e.size {
		return fmt.Errorf("the size of %s changed while it was read", e.source)
	}
	return err
}

// tarMode converts Go's mode bits to those of a tar header.
func tarMode(mode fs.FileMode) int64 {
	bits := int64(mode.Perm())
	if mode&fs.ModeSetuid != 0 {
		bits |= 0o4000
	}
	if mode&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if mode&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}
