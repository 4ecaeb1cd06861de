// Command template prints what Helm renders of a chart, as `helm template` does, CRDs first:
//
//	template -chart FOLDER_OR_ARCHIVE -namespace NAMESPACE [-values YAML]
package main

import (
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/yaml"
)

func main() {
	chart := flag.String("chart", "deploy/chart", "the chart's folder or archive")
	namespace := flag.String("namespace", "kube-system", "the namespace of the release")
	values := flag.String("values", "", "values in YAML")
	flag.Parse()
	if err := render(os.Stdout, *chart, *namespace, *values); err != nil {
		fmt.Fprintln(os.Stderr, "template:", err)
		os.Exit(1)
	}
}

func render(out io.Writer, chart, namespace, text string) error {
	c, err := loader.Load(chart)
	if err != nil {
		return err
	}
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &values); err != nil {
		return fmt.Errorf("-values: %w", err)
	}
	all, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "wayleave", Namespace: namespace,
		Revision: 1, IsInstall: true}, chartutil.DefaultCapabilities)
	if err != nil {
		return err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return err
	}
	for _, crd := range c.CRDObjects() {
		fmt.Fprintf(out, "---\n%s\n", crd.File.Data)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasSuffix(name, "NOTES.txt") && strings.TrimSpace(files[name]) != "" {
			fmt.Fprintf(out, "---\n%s\n", files[name])
		}
	}
	return nil
}
