// Command release packs the files of a release: `make release VERSION=v0.1.0`.
//
// Invariant: the same source, Go version and Debian packages give the same bytes, wherever and whenever the release is
// packed. No file holds the time of the build, or a path of the machine.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"wayleave.dev/deploy"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

const usage = "usage: release images|pack FLAGS; see hack/release"

func run(args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	switch args[0] {
	case "images":
		return images(args[1:], out)
	case "pack":
		return pack(args[1:], out)
	}
	return errors.New(usage)
}

// images packs docker-archives, one of each architecture, into one OCI image layout, and prints the image's name with
// the digest of the layout's index.
func images(args []string, out io.Writer) error {
	f := flag.NewFlagSet("images", flag.ContinueOnError)
	image := f.String("image", "", "the image's name: NAME:TAG")
	file := f.String("out", "", "the archive to write")
	archives := pairs{}
	f.Var(archives, "archive", "ARCH=FILE: the docker-archive of an architecture; may be repeated")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *file == "" || len(archives) == 0 {
		return errors.New("images: -out and -archive are needed")
	}
	digest, err := imageLayout(*file, *image, archives)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s@%s\n", *image, digest)
	return err
}

// build describes a release that is packed.
type build struct {
	deploy.Release
	// dir is the folder of the release. It has the images and programs already.
	dir string
	// date is that of the commit.
	date     time.Time
	revision string
	// programs are the programs in the image by "ARCH/NAME", debian the lists of its Debian packages by architecture.
	programs, debian pairs
	// changelog is the file CHANGELOG.md.
	changelog string
}

// pack adds to the folder of a release what is computed from its images and programs.
func pack(args []string, _ io.Writer) error {
	b := build{programs: pairs{}, debian: pairs{}}
	f := flag.NewFlagSet("pack", flag.ContinueOnError)
	f.StringVar(&b.Version, "version", "", "the version, such as v0.1.0")
	f.StringVar(&b.Image, "image", "", "the image's name in the manifest: NAME:TAG, or NAME:TAG@sha256:DIGEST")
	f.StringVar(&b.dir, "out", "", "the folder of the release")
	f.StringVar(&b.revision, "revision", "", "the commit")
	f.StringVar(&b.changelog, "changelog", "CHANGELOG.md", "the list of changes")
	seconds := f.Int64("date", 0, "the date of the commit, in seconds since 1970")
	f.Var(b.programs, "program", "ARCH/NAME=FILE: a program in the image; may be repeated")
	f.Var(b.debian, "debian", "ARCH=FILE: the list of the image's Debian packages; may be repeated")
	if err := f.Parse(args); err != nil {
		return err
	}
	b.date = time.Unix(*seconds, 0).UTC()
	if b.dir == "" || b.Version == deploy.DevVersion {
		return errors.New("pack: -out and a -version are needed")
	}
	if err := b.Check(); err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	for _, step := range []func() error{b.manifest, b.chart, b.changes, b.sbom, b.provenance, b.checksums} {
		if err := step(); err != nil {
			return fmt.Errorf("pack %s: %w", b.Version, err)
		}
	}
	return nil
}

// pairs are flags of the form KEY=FILE.
type pairs map[string]string

// String is empty: there is no default.
func (p pairs) String() string { return "" }

// Set adds KEY=FILE.
func (p pairs) Set(s string) error {
	key, file, ok := strings.Cut(s, "=")
	if !ok || key == "" || file == "" || p[key] != "" {
		return fmt.Errorf("found %q; KEY=FILE is allowed, each key once", s)
	}
	p[key] = file
	return nil
}
