package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
)

// maxArchive bounds the files of a layout: 4 GiB.
const maxArchive = 4 << 30

// unpack writes the files of an archive to a folder if it is an OCI image layout, and reports whether it is.
func unpack(archive, dir string) (bool, error) {
	isLayout, err := hasFile(archive, "oci-layout")
	if err != nil || !isLayout {
		return false, err
	}
	return true, eachFile(archive, func(name string, r io.Reader) error {
		if !filepath.IsLocal(name) {
			return errors.New(name + ": not below the archive's folder")
		}
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		out, err := os.Create(file)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		return errors.Join(err, out.Close())
	})
}

func hasFile(archive, want string) (found bool, err error) {
	err = eachFile(archive, func(name string, _ io.Reader) error {
		found = found || name == want
		return nil
	})
	return found, err
}

func eachFile(archive string, do func(name string, r io.Reader) error) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	r, total := tar.NewReader(f), int64(0)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if total += h.Size; total > maxArchive {
			return errors.New("larger than 4 GiB")
		}
		if h.Typeflag == tar.TypeReg {
			if err := do(path.Clean(h.Name), r); err != nil {
				return err
			}
		}
	}
}
