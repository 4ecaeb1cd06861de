// Package deploy renders both forms of the installation: the manifest for `kubectl apply -f` and the Helm chart. Both
// come from manifest.tmpl and the table of settings, so they cannot differ.
package deploy

import (
	"bytes"
	_ "embed"
	"fmt"
	"regexp"
	"strings"
	"text/template"

	"wayleave.dev/config"
)

// Image is the name that `make image` gives the image.
const Image = "wayleave.dev/wayleave:dev"

// Release names what an installation runs.
type Release struct {
	// Image is the image's name: NAME:TAG, or NAME:TAG@sha256:… to pin it.
	Image string
	// Version is the release's, such as v0.1.0, or dev for a build that is no release.
	Version string
}

// DevVersion is the version of a build that is no release.
const DevVersion = "dev"

// Dev is the build that `make image` makes.
func Dev() Release { return Release{Image: Image, Version: DevVersion} }

var (
	versionSyntax = regexp.MustCompile(`^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$`)
	imageSyntax   = regexp.MustCompile(
		`^[a-z0-9][a-z0-9._:/-]*:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(@sha256:[0-9a-f]{64})?$`)
)

// Check reports what is not allowed in a release: a version that is no semantic version, or is too long for a label,
// and an image without a tag.
func (r Release) Check() error {
	if r.Version != DevVersion && (!versionSyntax.MatchString(r.Version) || len(r.Version) > 63) {
		return fmt.Errorf("version: found %q; a version like v0.1.0 or v0.1.0-rc.1 is allowed", r.Version)
	}
	if !imageSyntax.MatchString(r.Image) {
		return fmt.Errorf("image: found %q; NAME:TAG or NAME:TAG@sha256:DIGEST is allowed", r.Image)
	}
	return nil
}

//go:embed manifest.tmpl
var manifest string

// values are the template's values. With Chart the result is a Helm template, which depends on the chart's values.
type values struct {
	Image, Version, Settings string
	// Namespace is that of the workloads. The election, and the Services kube-dns and wayleave-ingress, are in
	// kube-system whatever it is.
	Namespace string
	// CNIConf and CNIBin are the folders of the nodes for CNI.
	CNIConf, CNIBin string
	Chart           bool
}

// daemonSet holds the values of one DaemonSet.
type daemonSet struct {
	values
	Name          string
	ServesIngress bool
}

// Outside is the DaemonSet of all nodes, or of the nodes outside ingress.nodeSelector.
func (v values) Outside() daemonSet { return daemonSet{v, "wayleave", false} }

// Inside is the DaemonSet of the nodes that ingress.nodeSelector selects.
func (v values) Inside() daemonSet { return daemonSet{v, "wayleave-ingress", true} }

func render(v values) ([]byte, error) {
	t, err := template.New("manifest.tmpl").Delims("[[", "]]").Option("missingkey=error").Parse(manifest)
	if err != nil {
		return nil, fmt.Errorf("deploy: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return nil, fmt.Errorf("deploy: %w", err)
	}
	return b.Bytes(), nil
}

// Manifest returns the content of wayleave.yaml, which installs the build that `make image` makes.
func Manifest() ([]byte, error) { return Dev().Manifest() }

// Manifest returns the manifest that installs the release.
func (r Release) Manifest() ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("deploy: %w", err)
	}
	return render(values{Image: r.Image, Version: r.Version, Namespace: "kube-system",
		Settings: indent(config.Commented(), 4),
		CNIConf:  config.CNIConfDir, CNIBin: config.CNIBinDir})
}

func indent(text string, n int) string {
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+pad)
}
