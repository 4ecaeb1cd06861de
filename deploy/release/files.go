package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const sumsFile = "SHA256SUMS"

// file returns the path of a file of the release.
func (b build) file(name string) string { return filepath.Join(b.dir, name) }

func (b build) write(name string, body []byte) error { return os.WriteFile(b.file(name), body, 0o644) }

func (b build) manifest() error {
	m, err := b.Release.Manifest()
	if err != nil {
		return err
	}
	return b.write("wayleave-"+b.Version+".yaml", m)
}

// changes writes the section of the version in CHANGELOG.md. A pre-release has that of the heading Unreleased.
func (b build) changes() error {
	raw, err := os.ReadFile(b.changelog)
	if err != nil {
		return err
	}
	want := b.Version
	if strings.Contains(want, "-") {
		want = "Unreleased"
	}
	section := sectionOf(string(raw), want)
	if section == "" {
		return fmt.Errorf("%s: no section %q; write what changed below a heading \"## %s\"", b.changelog, want, want)
	}
	return b.write("CHANGELOG-"+b.Version+".md", []byte(section))
}

// sectionOf returns the text from the heading of a version to the next heading.
func sectionOf(text, version string) string {
	heading := regexp.MustCompile(`(?m)^## ` + regexp.QuoteMeta(version) + `( .*)?$`).FindStringIndex(text)
	if heading == nil {
		return ""
	}
	rest := text[heading[1]:]
	if next := strings.Index(rest, "\n## "); next >= 0 {
		rest = rest[:next]
	}
	if strings.TrimSpace(rest) == "" {
		return ""
	}
	return strings.TrimSpace(text[heading[0]:heading[1]]+rest) + "\n"
}

// checksums writes the sums of all other files, in the format of sha256sum.
func (b build) checksums() error {
	sums, err := b.sums()
	if err != nil {
		return err
	}
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		fmt.Fprintf(&out, "%s  %s\n", sums[name], name)
	}
	return b.write(sumsFile, []byte(out.String()))
}

// sums returns the SHA-256 of each file of the release but SHA256SUMS, by name.
func (b build) sums() (map[string]string, error) {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return nil, err
	}
	sums := map[string]string{}
	for _, e := range entries {
		if e.Name() == sumsFile {
			continue
		}
		if sums[e.Name()], err = sum(b.file(e.Name())); err != nil {
			return nil, err
		}
	}
	return sums, nil
}

func sum(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// tgz packs files by path, in the order of their names and with the date of the commit.
func (b build) tgz(files map[string][]byte) ([]byte, error) {
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	w := tar.NewWriter(zip)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644,
			Size: int64(len(files[name])), ModTime: b.date}); err != nil {
			return nil, err
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
