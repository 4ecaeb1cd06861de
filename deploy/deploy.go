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

// chartValues computes from the settings and the values that override them whether Ingress is enabled, the labels of
// the nodes that serve it, and the folders of CNI.
const chartValues = `{{- $cniConf := "` + config.CNIConfDir + `" }}
{{- $cniBin := "` + config.CNIBinDir + `" }}
{{- with (fromYaml .Values.settings).podnetwork }}
{{- with .cniConfDir }}{{ $cniConf = . }}{{ end }}
{{- with .cniBinDir }}{{ $cniBin = . }}{{ end }}
{{- end }}
{{- $serves := true }}
{{- $selector := dict }}
{{- with (fromYaml .Values.settings).ingress }}
{{- if eq (printf "%v" .enabled) "false" }}{{ $serves = false }}{{ end }}
{{- with .nodeSelector }}{{ $selector = . }}{{ end }}
{{- end }}
{{- with .Values.ingress }}
{{- if eq (printf "%v" .enabled) "false" }}{{ $serves = false }}{{ end }}
{{- with .nodeSelector }}{{ $selector = . }}{{ end }}
{{- end }}
{{- if not $serves }}{{ $selector = dict }}{{ end -}}
`

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
	return render(values{Image: r.Image, Version: r.Version, Settings: indent(config.Commented(), 4),
		CNIConf: config.CNIConfDir, CNIBin: config.CNIBinDir})
}

// Chart returns the files of the Helm chart of the build that `make image` makes, by path below chart/.
func Chart() (map[string][]byte, error) { return Dev().Chart() }

// Chart returns the files of the release's Helm chart, by path below the chart's folder. Its values are the image and
// the settings, with the defaults of the manifest.
func (r Release) Chart() (map[string][]byte, error) {
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("deploy: %w", err)
	}
	body, err := render(values{Image: "{{ .Values.image }}", Version: "{{ .Chart.AppVersion }}",
		Settings: "{{ .Values.settings | indent 4 }}", CNIConf: "{{ $cniConf }}", CNIBin: "{{ $cniBin }}", Chart: true})
	if err != nil {
		return nil, err
	}
	version := "0.0.0-dev"
	if r.Version != DevVersion {
		version = strings.TrimPrefix(r.Version, "v")
	}
	return map[string][]byte{
		"Chart.yaml": []byte("# Generated by `make gen`; do not edit.\napiVersion: v2\nname: wayleave\n" +
			"description: Pod network, service proxy and cluster DNS of a Kubernetes cluster\n" +
			"type: application\nversion: " + version + "\nappVersion: " + r.Version +
			"\nkubeVersion: \">= 1.33.0-0\"\n"),
		"values.yaml": []byte("# Generated by `make gen`; do not edit.\n" +
			"# The image, by its name on the nodes.\nimage: " + r.Image +
			"\n# Values of Ingress that override the settings below: enabled (true or false) and nodeSelector " +
			"(labels of the nodes that serve).\n" +
			"# Only agents that serve Ingress read Secrets; with a nodeSelector they belong to a separate " +
			"DaemonSet.\n" +
			"ingress: {}" +
			"\n# The settings file of Wayleave. An invalid or unknown setting is refused at start.\n" +
			"settings: |\n" +
			indent(config.Commented(), 2) + "\n"),
		"templates/wayleave.yaml": append([]byte(chartValues), body...),
	}, nil
}

func indent(text string, n int) string {
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+pad)
}
