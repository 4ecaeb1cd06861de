package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
)

// These are the parts of an in-toto statement (v1) with SLSA provenance (v1) that a release has.
type (
	statement struct {
		Type          string     `json:"_type"`
		Subject       []artefact `json:"subject"`
		PredicateType string     `json:"predicateType"`
		Predicate     predicate  `json:"predicate"`
	}
	artefact struct {
		Name   string            `json:"name,omitempty"`
		URI    string            `json:"uri,omitempty"`
		Digest map[string]string `json:"digest,omitempty"`
	}
	predicate struct {
		BuildDefinition definition `json:"buildDefinition"`
		RunDetails      runDetails `json:"runDetails"`
	}
	definition struct {
		BuildType            string            `json:"buildType"`
		ExternalParameters   map[string]string `json:"externalParameters"`
		ResolvedDependencies []artefact        `json:"resolvedDependencies"`
	}
	runDetails struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
	}
)

// provenance writes from what the release was made. The statement is not signed: it says what to build again, and what
// must come out.
func (b build) provenance() error {
	sums, err := b.sums()
	if err != nil {
		return err
	}
	name := "wayleave-" + b.Version + ".provenance.json"
	s := statement{Type: "https://in-toto.io/Statement/v1", PredicateType: "https://slsa.dev/provenance/v1"}
	for _, file := range slices.Sorted(maps.Keys(sums)) {
		if file != name {
			s.Subject = append(s.Subject, artefact{Name: file, Digest: map[string]string{"sha256": sums[file]}})
		}
	}
	d := &s.Predicate.BuildDefinition
	d.BuildType = "https://wayleave.dev/make-release/v1"
	d.ExternalParameters = map[string]string{"VERSION": b.Version, "image": b.Image}
	if d.ResolvedDependencies, err = b.materials(); err != nil {
		return err
	}
	s.Predicate.RunDetails.Builder.ID = "https://wayleave.dev/make-release/local"
	raw, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	return b.write(name, append(raw, '\n'))
}

// materials are the commit, the Go version and the Debian packages. go.sum in the commit has the sums of Go modules.
func (b build) materials() ([]artefact, error) {
	out := []artefact{
		{URI: "git+https://wayleave.dev", Digest: map[string]string{"gitCommit": b.revision}},
		{URI: "pkg:golang/std@" + strings.TrimPrefix(runtime.Version(), "go")},
	}
	for _, arch := range slices.Sorted(maps.Keys(b.debian)) {
		raw, err := os.ReadFile(b.debian[arch])
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(raw)) {
			f := strings.Fields(line)
			if len(f) != 4 {
				return nil, fmt.Errorf("%s: found %q; NAME VERSION ARCHITECTURE SHA256 is allowed",
					b.debian[arch], line)
			}
			out = append(out, artefact{URI: purl("deb/debian/" + f[0] + "@" + f[1] + "?arch=" + f[2])[0].Locator,
				Digest: map[string]string{"sha256": f[3]}})
		}
	}
	return out, nil
}
