package deploy

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"

	"wayleave.dev/api"
	"wayleave.dev/config"
)

// chartHead computes from the settings and the values that override them whether Ingress and BGP are enabled, the
// labels of the nodes that serve the former, and the folders of CNI.
const chartHead = `{{- $cniConf := "` + config.CNIConfDir + `" }}
{{- $cniBin := "` + config.CNIBinDir + `" }}
{{- with (fromYaml .Values.settings).podnetwork }}
{{- with .cniConfDir }}{{ $cniConf = . }}{{ end }}
{{- with .cniBinDir }}{{ $cniBin = . }}{{ end }}
{{- end }}
{{- $speaks := false }}
{{- with (fromYaml .Values.settings).bgp }}
{{- if eq (printf "%v" .enabled) "true" }}{{ $speaks = true }}{{ end }}
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

// chartNotes is what Helm prints after an installation.
//
//go:embed notes.tmpl
var chartNotes []byte

// podMonitor is the template of the PodMonitor. Agents share the node's network and declare no port, because two of
// them overlap in a rollout: the address is that of the setting metrics.port.
//
//go:embed podmonitor.tmpl
var podMonitor string

// serviceMonitor is the template of the ServiceMonitor, and of the Service that it selects.
//
//go:embed servicemonitor.tmpl
var serviceMonitor string

// chartGuard refuses a second installation, and the namespace in which agents write.
//
//go:embed guard.tmpl
var chartGuard []byte

// chartValue is a value of the chart.
type chartValue struct {
	key string
	// value is the default in YAML.
	value string
	// schema is the JSON schema of the value.
	schema string
	// doc holds the lines of the comment in values.yaml.
	doc []string
}

func (r Release) chartValues() []chartValue {
	const (
		object = `{"type": "object"}`
		// nodeAffinity has the terms that the chart joins with its own.
		nodeAffinity = `{"type": "object", "additionalProperties": false, "properties": {` +
			`"preferredDuringSchedulingIgnoredDuringExecution": {"type": "array", "items": {"type": "object"}}, ` +
			`"requiredDuringSchedulingIgnoredDuringExecution": {"type": "object", "required": ["nodeSelectorTerms"], ` +
			`"additionalProperties": false, "properties": {"nodeSelectorTerms": {"type": "array", "minItems": 1, ` +
			`"items": {"type": "object", "additionalProperties": false, "properties": {` +
			`"matchExpressions": {"type": "array"}, "matchFields": {"type": "array"}}}}}}}}`
		ownLabels = `{"type": "object", "additionalProperties": {"type": "string"}, ` +
			`"propertyNames": {"not": {"pattern": "^(app\\.kubernetes\\.io|helm\\.sh)/"}}}`
		monitor = `{"type": "object", "additionalProperties": false, "properties": {"enabled": {"type": "boolean"}, ` +
			`"interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"}, "labels": ` + object + `}}`
	)
	return []chartValue{
		{"image", r.Image, `{"type": "string", "minLength": 1}`, []string{
			"The image: NAME:TAG, or NAME:TAG@sha256:DIGEST."}},
		{"imagePullSecrets", "[]", `{"type": "array", "items": {"type": "object", "required": ["name"], ` +
			`"properties": {"name": {"type": "string"}}, "additionalProperties": false}}`, []string{
			"Secrets in the namespace of the release for the registry of the image, as in [{name: registry}]."}},
		{"nodeSelector", "{}", `{"type": "object", "additionalProperties": {"type": "string"}}`, []string{
			"Labels of the nodes that run Wayleave. Pods of other nodes have no network."}},
		{"affinity", "{}", `{"type": "object", "additionalProperties": false, "properties": {"nodeAffinity": ` +
			nodeAffinity + `}}`, []string{
			"Affinity of the agents to nodes, as in the specification of a pod: nodeAffinity only. Pods of " +
				"nodes that it",
			"leaves out have no network."}},
		{"writerAffinity", "\n  # A captured node has the writer's rights: prefer nodes without tenants' pods." +
			"\n  nodeAffinity:" +
			"\n    preferredDuringSchedulingIgnoredDuringExecution:" +
			"\n    - weight: 100" +
			"\n      preference:" +
			"\n        matchExpressions:" +
			"\n        - {key: node-role.kubernetes.io/control-plane, operator: Exists}",
			object, []string{"Affinity of the writer, as in the specification of a pod."}},
		{"tolerations", "\n- operator: Exists", `{"type": "array", "items": {"type": "object"}}`, []string{
			"Tolerations of the agents. Pods of nodes that they leave out have no network."}},
		{"resources", "\n  discover: {limits: {memory: 64Mi}}" +
			"\n  agent: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 2Gi}}" +
			"\n  dns: {requests: {cpu: 50m, memory: 32Mi}, limits: {memory: 320Mi}}" +
			"\n  proxy: {requests: {cpu: 50m, memory: 64Mi}, limits: {memory: 512Mi}}" +
			"\n  writer: {requests: {cpu: 20m, memory: 64Mi}, limits: {memory: 1Gi}}",
			`{"type": "object", "additionalProperties": false, "properties": {"discover": ` + object +
				`, "agent": ` + object +
				`, "dns": ` + object + `, "proxy": ` + object + `, "writer": ` + object + `}}`, []string{
				"Requests and limits of each container. Limits of memory bound what a flood can take: do " +
					"not remove them."}},
		{"podAnnotations", "{}", `{"type": "object", "additionalProperties": {"type": "string"}}`, []string{
			"Annotations of all pods."}},
		{"podLabels", "{}", ownLabels, []string{
			"Labels of all pods, in addition to those of the chart. Keys of app.kubernetes.io are the chart's."}},
		{"labels", "{}", ownLabels, []string{
			"Labels of all objects, in addition to those of the chart. Keys of app.kubernetes.io and helm.sh are the",
			"chart's."}},
		{"podMonitor", "\n  enabled: false\n  interval: 30s\n  labels: {}",
			monitor, []string{
				"A PodMonitor for the Prometheus operator. It needs the setting metrics.port below, and " +
					"scrapes with the",
				"token of Prometheus; labels are those by which Prometheus selects monitors."}},
		{"serviceMonitor", "\n  enabled: false\n  interval: 30s\n  labels: {}", monitor, []string{
			"A ServiceMonitor, and a Service for it, in place of the PodMonitor; the same rules apply."}},
		{"ingress", "{}", `{"type": "object", "additionalProperties": false, "properties": {"enabled": {"type": ` +
			`["boolean", "string"]}, "nodeSelector": {"type": "object", "additionalProperties": {"type": "string"}}}}`,
			[]string{
				"Values of Ingress that override the settings below: enabled (true or false) and nodeSelector " +
					"(labels of the",
				"nodes that serve). Only agents that serve Ingress read Secrets; with a nodeSelector they belong to a",
				"separate DaemonSet."}},
		{"settings", "|\n" + indent(config.Commented(), 2), `{"type": "string"}`, []string{
			"The settings file of Wayleave, as text. Settings that it does not have get their defaults. An " +
				"invalid or unknown",
			"setting is refused at start."}},
	}
}

// Chart returns the files of the Helm chart of the build that `make image` makes, by path below chart/.
func Chart() (map[string][]byte, error) { return Dev().Chart() }

// Chart returns the files of the release's Helm chart, by path below the chart's folder. With the default values it
// renders the objects of the manifest.
func (r Release) Chart() (map[string][]byte, error) {
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("deploy: %w", err)
	}
	body, err := render(values{Image: "{{ .Values.image }}", Version: "{{ .Chart.AppVersion }}",
		Namespace: "{{ .Release.Namespace }}",
		Settings:  "{{ .Values.settings | indent 4 }}", CNIConf: "{{ $cniConf }}",
		CNIBin: "{{ $cniBin }}", Chart: true})
	if err != nil {
		return nil, err
	}
	schema, err := schemaOf(r.chartValues())
	if err != nil {
		return nil, err
	}
	version := "0.0.0-dev"
	if r.Version != DevVersion {
		version = strings.TrimPrefix(r.Version, "v")
	}
	files := map[string][]byte{
		"Chart.yaml": []byte("# Generated by `make gen`; do not edit.\napiVersion: v2\nname: wayleave\n" +
			"description: Pod network, service proxy and cluster DNS of a Kubernetes cluster\n" +
			"type: application\nversion: " + version + "\nappVersion: " + r.Version +
			"\nkubeVersion: \">= 1.33.0-0\"\n"),
		"values.yaml":                   valuesOf(r.chartValues()),
		"values.schema.json":            schema,
		"crds/addresspools.yaml":        api.AddressPoolCRD,
		"templates/NOTES.txt":           chartNotes,
		"templates/podmonitor.yaml":     withLabels(podMonitor),
		"templates/servicemonitor.yaml": withLabels(serviceMonitor),
		"templates/guard.yaml":          chartGuard,
		"templates/wayleave.yaml":       append([]byte(chartHead), labelled(body)...),
	}
	for _, d := range api.BGPDefinitions() {
		files["crds/"+d.Resource+".yaml"] = d.YAML
	}
	return files, nil
}

// valuesOf returns values.yaml.
func valuesOf(list []chartValue) []byte {
	var b bytes.Buffer
	b.WriteString("# Generated by `make gen`; do not edit.\n")
	for _, v := range list {
		for _, line := range v.doc {
			fmt.Fprintf(&b, "# %s\n", line)
		}
		fmt.Fprintf(&b, "%s:%s\n", v.key, strings.TrimSuffix(" "+v.value, " "))
	}
	return bytes.ReplaceAll(b.Bytes(), []byte(": \n"), []byte(":\n"))
}

// schemaOf returns values.schema.json, by which Helm refuses unknown values.
func schemaOf(list []chartValue) ([]byte, error) {
	properties := map[string]json.RawMessage{"global": json.RawMessage(`{"type": "object"}`)}
	for _, v := range list {
		properties[v.key] = json.RawMessage(v.schema)
	}
	raw, err := json.MarshalIndent(map[string]any{"$schema": "http://json-schema.org/draft-07/schema#",
		"type":                 "object",
		"additionalProperties": false, "properties": properties,
		// A value that is null is none.
		"required": []string{"image", "resources", "podMonitor", "serviceMonitor", "settings"}}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("deploy: schema of the chart: %w", err)
	}
	return append(raw, '\n'), nil
}

// chartLabels are the labels that Helm recommends for every object, and those of the value labels.
const chartLabels = `    helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
    app.kubernetes.io/instance: {{ .Release.Name | quote }}
    app.kubernetes.io/managed-by: {{ .Release.Service }}
    {{- range $key, $value := $.Values.labels }}
    {{ $key | quote }}: {{ $value | quote }}
    {{- end }}
`

// withLabels fills the labels into a template that has a line LABELS for them.
func withLabels(tmpl string) []byte { return []byte(strings.ReplaceAll(tmpl, "LABELS\n", chartLabels)) }

// labelled adds chartLabels to each object of a manifest. Its objects have their metadata at the start of a line.
func labelled(manifest []byte) []byte {
	var out bytes.Buffer
	inMetadata := false
	for line := range strings.Lines(string(manifest)) {
		if inMetadata && line == "  labels:\n" {
			out.WriteString(line + chartLabels)
			inMetadata = false
			continue
		}
		ends := !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "{{")
		if inMetadata && ends {
			out.WriteString("  labels:\n" + chartLabels)
			inMetadata = false
		}
		inMetadata = inMetadata || line == "metadata:\n"
		out.WriteString(line)
	}
	if inMetadata {
		out.WriteString("  labels:\n" + chartLabels)
	}
	return out.Bytes()
}
