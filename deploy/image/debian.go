package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"wayleave.dev/internal/dockerarchive"
)

// debian is a folder of unpacked packages.
type debian struct {
	root string
	// triplet names the folders of libraries: x86_64-linux-gnu.
	triplet string
	layer   *dockerarchive.Layer
	done    map[string]bool
}

// Programs for the image: those of the service proxy's modes, which are also used to inspect rules. The flavour
// without a name is nft.
const (
	nftMulti    = "/usr/sbin/xtables-nft-multi"
	legacyMulti = "/usr/sbin/xtables-legacy-multi"
	ipvsadm     = "/sbin/ipvsadm"
)

// addDebian adds the programs and the libraries that they load, and nothing else.
func addDebian(l *dockerarchive.Layer, root, arch string) error {
	triplets := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
	d := &debian{root: root, triplet: triplets[arch], layer: l, done: map[string]bool{}}
	if d.triplet == "" {
		return fmt.Errorf("architecture %q: amd64 and arm64 are known", arch)
	}
	errs := []error{d.program(nftMulti), d.program(legacyMulti), d.program(ipvsadm)}
	plugins, err := filepath.Glob(filepath.Join(root, "usr/lib", d.triplet, "xtables", "*.so"))
	if err != nil || len(plugins) == 0 {
		return errors.Join(fmt.Errorf("%s has no plugins of iptables", root), err)
	}
	for _, p := range plugins {
		errs = append(errs, d.program(strings.TrimPrefix(p, root)))
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, what := range []string{"", "-save", "-restore"} {
			errs = append(errs,
				l.Symlink("/usr/sbin/"+family+what, "xtables-nft-multi"),
				l.Symlink("/usr/sbin/"+family+"-nft"+what, "xtables-nft-multi"),
				l.Symlink("/usr/sbin/"+family+"-legacy"+what, "xtables-legacy-multi"))
		}
	}
	return errors.Join(append(errs, d.licences())...)
}

// program adds a file with its interpreter and libraries.
func (d *debian) program(name string) error {
	if d.done[name] {
		return nil
	}
	d.done[name] = true
	file := filepath.Join(d.root, name)
	real, err := d.resolve(file)
	if err != nil {
		return err
	}
	if err := d.layer.Copy(name, 0o755, real, dockerarchive.Attr{}); err != nil {
		return err
	}
	f, err := elf.Open(real)
	if err != nil {
		return fmt.Errorf("%s: %w", real, err)
	}
	defer f.Close()
	if s := f.Section(".interp"); s != nil {
		raw, err := s.Data()
		if err != nil {
			return fmt.Errorf("%s: %w", real, err)
		}
		if err := d.program(strings.TrimRight(string(raw), "\x00")); err != nil {
			return err
		}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", real, err)
	}
	for _, lib := range needed {
		if err := d.library(lib); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (d *debian) library(lib string) error {
	for _, dir := range []string{"/lib/", "/usr/lib/"} {
		name := dir + d.triplet + "/" + lib
		if _, err := os.Lstat(filepath.Join(d.root, name)); err == nil {
			return d.program(name)
		}
	}
	return fmt.Errorf("no library %s in the packages", lib)
}

// resolve follows links as if the folder were the root directory.
func (d *debian) resolve(file string) (string, error) {
	for range 10 {
		target, err := os.Readlink(file)
		if err != nil {
			if _, statErr := os.Stat(file); statErr != nil {
				return "", statErr
			}
			return file, nil
		}
		if filepath.IsAbs(target) {
			file = filepath.Join(d.root, target)
		} else {
			file = filepath.Join(filepath.Dir(file), target)
		}
	}
	return "", fmt.Errorf("%s: too many links", file)
}

// licences adds the packages' copyright files.
func (d *debian) licences() error {
	doc := filepath.Join(d.root, "usr/share/doc")
	return filepath.WalkDir(doc, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "copyright" || !e.Type().IsRegular() {
			return err
		}
		return d.layer.Copy(strings.TrimPrefix(path, d.root), 0o644, path, dockerarchive.Attr{})
	})
}
