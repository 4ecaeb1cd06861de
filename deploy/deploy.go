// Package deploy renders both forms of the installation: the manifest for `kubectl apply -f` and the Helm chart. Both
// come from manifest.tmpl and the table of settings, so they cannot differ.
package deploy

import (
	"bytes"
	_ "embed"
	"fmt"
	"strings"
	"text/template"

	"wayleave.dev/config"
)

// Image is the name that `make image` gives the image.
const Image = "wayleave.dev/wayleave:dev"

//go:embed manifest.tmpl
var manifest string

// values are the template's values. With Chart the result is a Helm template, which depends on the chart's values.
type values struct {
	Image, Settings string
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

// chartValues computes from the settings and the values that override them whether Ingress is enabled, and the labels
// of the nodes that serve it.
const chartValues = `{{- $serves := true }}
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

// Manifest returns the content of wayleave.yaml.
func Manifest() ([]byte, error) {
	return render(values{Image: Image, Settings: indent(config.Commented(), 4)})
}

// Chart returns the files of the Helm chart, by path below chart/. Its values are the image and the settings, with
// the defaults of the manifest.
func Chart() (map[string][]byte, error) {
	body, err := render(values{Image: "{{ .Values.image }}",
		Settings: "{{ .Values.settings | indent 4 }}", Chart: true})
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"Chart.yaml": []byte("# Made by `make gen`; do not edit.\napiVersion: v2\nname: wayleave\ndescription: Pod " +
			"network, service proxy and cluster DNS of a Kubernetes cluster\n" +
			"type: application\nversion: 0.1.0\nappVersion: dev\nkubeVersion: \">= 1.33.0-0\"\n"),
		"values.yaml": []byte("# Made by `make gen`; do not edit.\n# The image, as the nodes know it.\nimage: " +
			Image +
			"\n# Ingress, where it differs from the settings below: enabled (true or false) and nodeSelector " +
			"(labels of the nodes that serve).\n" +
			"# Only agents that serve Ingress read Secrets; with a nodeSelector they are those of a DaemonSet of " +
			"their own.\ningress: {}" +
			"\n# The settings file of Wayleave. A wrong or unknown setting is refused at start, by name.\n" +
			"settings: |\n" +
			indent(config.Commented(), 2) + "\n"),
		"templates/wayleave.yaml": append([]byte(chartValues), body...),
	}, nil
}

func indent(text string, n int) string {
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+pad)
}
