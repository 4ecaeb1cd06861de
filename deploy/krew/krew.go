// Package krew makes the manifest by which krew installs the program as a plugin of kubectl.
package krew

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"text/template"
)

//go:embed krew.yaml.tmpl
var manifest string

// Release is what the manifest is made of.
type Release struct {
	// Version is that of semver.org with a "v", such as v0.2.0.
	Version  string
	Homepage string
	Archives []Archive
}

// Archive is a .tar.gz or .zip with the program for one platform.
type Archive struct {
	// OS and Arch are those of Go.
	OS, Arch string
	// URI is an https address, and SHA256 the checksum of the file there, in hex.
	URI, SHA256 string
	// Binary is the file in the archive.
	Binary string
}

var (
	versions  = regexp.MustCompile(`^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$`)
	checksums = regexp.MustCompile(`^[0-9a-f]{64}$`)
	words     = regexp.MustCompile(`^[a-z0-9_.-]+$`)
)

// Manifest is the plugin's manifest. The error names each field that krew would refuse.
func Manifest(r Release) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	t, err := template.New("krew").Option("missingkey=error").Parse(manifest)
	if err != nil {
		return nil, fmt.Errorf("krew manifest: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, r); err != nil {
		return nil, fmt.Errorf("krew manifest: %w", err)
	}
	return b.Bytes(), nil
}

func (r Release) check() error {
	var errs []error
	need := func(ok bool, field, found, allowed string) {
		if !ok {
			errs = append(errs, fmt.Errorf("krew manifest: %s: found %q; %s is allowed", field, found, allowed))
		}
	}
	need(versions.MatchString(r.Version), "version", r.Version, "a version such as v0.2.0")
	need(isHTTPS(r.Homepage), "homepage", r.Homepage, "an https address")
	need(len(r.Archives) > 0, "platforms", "", "at least one")
	seen := map[string]bool{}
	for _, a := range r.Archives {
		p := a.OS + "/" + a.Arch
		need(words.MatchString(a.OS) && words.MatchString(a.Arch) && !seen[p], "selector", p, "each OS/ARCH once")
		need(isHTTPS(a.URI), p+": uri", a.URI, "an https address")
		need(checksums.MatchString(a.SHA256), p+": sha256", a.SHA256, "64 digits of hex")
		need(words.MatchString(a.Binary), p+": bin", a.Binary, "the name of a file in the archive")
		seen[p] = true
	}
	return errors.Join(errs...)
}

func isHTTPS(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Host != "" && !bytes.ContainsAny([]byte(s), " \n#'\"")
}
