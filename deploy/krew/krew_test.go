package krew

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func release() Release {
	r := Release{Version: "v0.2.0", Homepage: "https://example.com/wayleave"}
	for _, p := range [][2]string{{"linux", "amd64"}, {"linux", "arm64"}, {"darwin", "amd64"}, {"darwin", "arm64"}} {
		r.Archives = append(r.Archives, Archive{OS: p[0], Arch: p[1], Binary: "wayleave",
			URI:    "https://example.com/v0.2.0/wayleave-" + p[0] + "-" + p[1] + ".tar.gz",
			SHA256: strings.Repeat("0123456789abcdef", 4)})
	}
	return r
}

// plugin has the fields of krew's Plugin, v1alpha2.
type plugin struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		Version          string     `json:"version"`
		ShortDescription string     `json:"shortDescription"`
		Description      string     `json:"description"`
		Homepage         string     `json:"homepage"`
		Platforms        []platform `json:"platforms"`
	} `json:"spec"`
}

type platform struct {
	URI      string `json:"uri"`
	SHA256   string `json:"sha256"`
	Bin      string `json:"bin"`
	Selector struct {
		MatchLabels map[string]string `json:"matchLabels"`
	} `json:"selector"`
}

func TestTheManifestIsAPluginOfKrew(t *testing.T) {
	raw, err := Manifest(release())
	if err != nil {
		t.Fatal(err)
	}
	var p plugin
	if err := yaml.UnmarshalStrict(raw, &p); err != nil {
		t.Fatalf("%v in\n%s", err, raw)
	}
	if p.APIVersion != "krew.googlecontainertools.github.com/v1alpha2" || p.Kind != "Plugin" ||
		p.Metadata.Name != "wayleave" || p.Spec.Version != "v0.2.0" || p.Spec.Description == "" {
		t.Errorf("%+v", p)
	}
	if len(p.Spec.ShortDescription) > 50 {
		t.Errorf("the short description has %d characters; krew's index wants 50 at most", len(p.Spec.ShortDescription))
	}
	if len(p.Spec.Platforms) != 4 {
		t.Fatalf("%d platforms", len(p.Spec.Platforms))
	}
	for i, a := range release().Archives {
		got := p.Spec.Platforms[i]
		if got.URI != a.URI || got.SHA256 != a.SHA256 || got.Bin != "wayleave" ||
			got.Selector.MatchLabels["os"] != a.OS || got.Selector.MatchLabels["arch"] != a.Arch {
			t.Errorf("platform %d: %+v", i, got)
		}
	}
}

func TestWhatKrewRefusesIsRefused(t *testing.T) {
	for field, spoil := range map[string]func(*Release){
		"version":   func(r *Release) { r.Version = "dev" },
		"homepage":  func(r *Release) { r.Homepage = "http://example.com" },
		"platforms": func(r *Release) { r.Archives = nil },
		"selector":  func(r *Release) { r.Archives[1] = r.Archives[0] },
		"uri":       func(r *Release) { r.Archives[0].URI = "https://example.com/a\nbin: x" },
		"sha256":    func(r *Release) { r.Archives[0].SHA256 = "abc" },
		"bin":       func(r *Release) { r.Archives[0].Binary = "../wayleave" },
	} {
		r := release()
		spoil(&r)
		if _, err := Manifest(r); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
