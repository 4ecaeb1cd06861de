package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"sigs.k8s.io/yaml"
)

// Media types of a chart in a registry, as Helm pushes it.
const (
	chartConfig  = types.MediaType("application/vnd.cncf.helm.config.v1+json")
	chartContent = types.MediaType("application/vnd.cncf.helm.chart.content.v1.tar+gzip")
)

// chart writes the Helm chart twice: as Helm packs it, and as an OCI artefact in a layout.
func (b build) chart() error {
	files, err := b.Release.Chart()
	if err != nil {
		return err
	}
	packed := map[string][]byte{}
	for name, body := range files {
		packed["wayleave/"+name] = body
	}
	archive, err := b.tgz(packed)
	if err != nil {
		return fmt.Errorf("chart: %w", err)
	}
	version := strings.TrimPrefix(b.Version, "v")
	if err := b.write("wayleave-"+version+".tgz", archive); err != nil {
		return err
	}
	config, err := yaml.YAMLToJSON(files["Chart.yaml"])
	if err != nil {
		return fmt.Errorf("chart: %w", err)
	}
	return writeLayout(b.file("wayleave-chart-"+version+"-oci.tar"), func(to layout.Path) error {
		return b.artefact(to, version, config, archive)
	})
}

// artefact adds the chart to a layout.
func (b build) artefact(to layout.Path, version string, config, archive []byte) error {
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	var err error
	if manifest.Config, err = blob(to, chartConfig, config); err != nil {
		return err
	}
	content, err := blob(to, chartContent, archive)
	if err != nil {
		return err
	}
	manifest.Layers = []v1.Descriptor{content}
	raw, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	d, err := blob(to, types.OCIManifestSchema1, raw)
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{refName: version}
	return to.AppendDescriptor(d)
}

func blob(to layout.Path, kind types.MediaType, body []byte) (v1.Descriptor, error) {
	hash, size, err := v1.SHA256(bytes.NewReader(body))
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: kind, Size: size, Digest: hash},
		to.WriteBlob(hash, io.NopCloser(bytes.NewReader(body)))
}
