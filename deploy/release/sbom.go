package main

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// These are the parts of SPDX 2.3 (JSON) that the bill of materials uses.
type (
	spdx struct {
		SPDXVersion       string             `json:"spdxVersion"`
		DataLicense       string             `json:"dataLicense"`
		SPDXID            string             `json:"SPDXID"`
		Name              string             `json:"name"`
		DocumentNamespace string             `json:"documentNamespace"`
		CreationInfo      spdxCreation       `json:"creationInfo"`
		Packages          []spdxPackage      `json:"packages"`
		Relationships     []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		Name             string         `json:"name"`
		SPDXID           string         `json:"SPDXID"`
		VersionInfo      string         `json:"versionInfo"`
		DownloadLocation string         `json:"downloadLocation"`
		FilesAnalyzed    bool           `json:"filesAnalyzed"`
		LicenseConcluded string         `json:"licenseConcluded"`
		LicenseDeclared  string         `json:"licenseDeclared"`
		CopyrightText    string         `json:"copyrightText"`
		Purpose          string         `json:"primaryPackagePurpose,omitempty"`
		Checksums        []spdxChecksum `json:"checksums,omitempty"`
		ExternalRefs     []spdxRef      `json:"externalRefs,omitempty"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

const noAssertion = "NOASSERTION"

// bill collects packages and what contains them.
type bill struct {
	packages map[string]spdxPackage
	contains map[spdxRelationship]bool
}

// sbom writes the bill of materials: the programs with the Go modules that the linker recorded in them, and the image
// of each architecture with its programs and Debian packages.
func (b build) sbom() error {
	m := bill{packages: map[string]spdxPackage{}, contains: map[spdxRelationship]bool{}}
	var tops []string
	programs, err := filepath.Glob(b.file("wayleave-" + b.Version + "-*-*"))
	if err != nil {
		return err
	}
	for _, file := range programs {
		if filepath.Ext(file) == ".tar" {
			continue
		}
		id, err := m.program(filepath.Base(file), b.Version, file)
		if err != nil {
			return err
		}
		tops = append(tops, id)
	}
	for _, arch := range slices.Sorted(maps.Keys(b.debian)) {
		id, err := m.image(b, arch)
		if err != nil {
			return err
		}
		tops = append(tops, id)
	}
	raw, err := m.document(b, tops)
	if err != nil {
		return err
	}
	return b.write("wayleave-"+b.Version+".spdx.json", raw)
}

// image adds the image of an architecture.
func (m bill) image(b build, arch string) (string, error) {
	id := m.add(spdxPackage{Name: b.Image, VersionInfo: b.Version, Purpose: "CONTAINER"}, arch)
	for _, key := range slices.Sorted(maps.Keys(b.programs)) {
		of, name, _ := strings.Cut(key, "/")
		if of != arch {
			continue
		}
		program, err := m.program(name+" (linux/"+arch+")", b.Version, b.programs[key])
		if err != nil {
			return "", err
		}
		m.contain(id, program)
	}
	raw, err := os.ReadFile(b.debian[arch])
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) != 4 {
			return "", fmt.Errorf("%s: found %q; NAME VERSION ARCHITECTURE SHA256 is allowed", b.debian[arch], line)
		}
		m.contain(id, m.add(spdxPackage{Name: f[0], VersionInfo: f[1], ExternalRefs: purl("deb/debian/" + f[0] + "@" +
			url.PathEscape(f[1]) + "?arch=" + f[2]), Checksums: []spdxChecksum{{"SHA256", f[3]}}}, f[2]))
	}
	return id, nil
}

// program adds a Go program with its modules.
func (m bill) program(name, version, file string) (string, error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	digest, err := sum(file)
	if err != nil {
		return "", err
	}
	id := m.add(spdxPackage{Name: name, VersionInfo: version, Purpose: "APPLICATION",
		Checksums: []spdxChecksum{{"SHA256", digest}}}, digest)
	std := &debug.Module{Path: "std", Version: strings.TrimPrefix(info.GoVersion, "go")}
	for _, mod := range append(info.Deps, std) {
		if mod.Replace != nil {
			mod = mod.Replace
		}
		m.contain(id, m.add(spdxPackage{Name: mod.Path, VersionInfo: mod.Version,
			ExternalRefs: purl("golang/" + mod.Path + "@" + mod.Version)}, ""))
	}
	return id, nil
}

func purl(what string) []spdxRef { return []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:" + what}} }

var notInIDs = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// add adds a package once, and returns its identifier. kind tells packages of one name and version apart.
func (m bill) add(p spdxPackage, kind string) string {
	hash := sha256.Sum256([]byte(p.Name + "\n" + p.VersionInfo + "\n" + kind))
	p.SPDXID = "SPDXRef-" + notInIDs.ReplaceAllString(p.Name, "-") + "-" + hex.EncodeToString(hash[:6])
	p.DownloadLocation, p.LicenseConcluded, p.LicenseDeclared = noAssertion, noAssertion, noAssertion
	p.CopyrightText = noAssertion
	m.packages[p.SPDXID] = p
	return p.SPDXID
}

func (m bill) contain(whole, part string) {
	m.contains[spdxRelationship{whole, "CONTAINS", part}] = true
}

// document encodes the bill. Its name space is a digest of its content.
func (m bill) document(b build, tops []string) ([]byte, error) {
	doc := spdx{SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT",
		Name: "wayleave-" + b.Version, CreationInfo: spdxCreation{Created: b.date.Format(time.RFC3339),
			Creators: []string{"Tool: wayleave.dev/deploy/release-" + b.Version}}}
	for _, id := range slices.Sorted(maps.Keys(m.packages)) {
		doc.Packages = append(doc.Packages, m.packages[id])
	}
	for _, id := range tops {
		doc.Relationships = append(doc.Relationships, spdxRelationship{doc.SPDXID, "DESCRIBES", id})
	}
	parts := slices.SortedFunc(maps.Keys(m.contains), func(a, b spdxRelationship) int {
		return cmp.Or(strings.Compare(a.Element, b.Element), strings.Compare(a.Related, b.Related))
	})
	doc.Relationships = append(doc.Relationships, parts...)
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(raw)
	doc.DocumentNamespace = "https://wayleave.dev/spdx/" + b.Version + "/" + hex.EncodeToString(hash[:])
	raw, err = json.MarshalIndent(doc, "", " ")
	return append(raw, '\n'), err
}
