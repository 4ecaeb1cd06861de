package install

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// maxObjects bounds a manifest.
const maxObjects = 200

// parse reads the objects of a manifest, in its order.
func parse(manifest []byte) ([]*unstructured.Unstructured, error) {
	if len(manifest) > MaxManifest {
		return nil, fmt.Errorf("manifest: more than %d bytes", MaxManifest)
	}
	var out []*unstructured.Unstructured
	for r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifest))); ; {
		raw, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		o, err := decode(raw)
		if err != nil {
			return nil, fmt.Errorf("manifest: object %d: %w", len(out)+1, err)
		}
		if len(o.Object) == 0 {
			continue // only comments
		}
		if o.GetKind() == "" || o.GetAPIVersion() == "" || o.GetName() == "" {
			return nil, fmt.Errorf("manifest: object %d has no apiVersion, kind or name", len(out)+1)
		}
		if out = append(out, o); len(out) > maxObjects {
			return nil, fmt.Errorf("manifest: more than %d objects", maxObjects)
		}
	}
	if find(out, "DaemonSet", "wayleave") == nil || find(out, "ConfigMap", "wayleave") == nil {
		return nil, errors.New("manifest: no DaemonSet or ConfigMap wayleave: not a manifest of Wayleave")
	}
	return out, nil
}

// decode reads an object. Its integers are int64, as those of the API server.
func decode(raw []byte) (*unstructured.Unstructured, error) {
	raw, err := yaml.YAMLToJSONStrict(raw)
	if err != nil {
		return nil, err
	}
	o := &unstructured.Unstructured{}
	return o, json.Unmarshal(raw, &o.Object)
}

func find(objects []*unstructured.Unstructured, kind, name string) *unstructured.Unstructured {
	for _, o := range objects {
		if o.GetKind() == kind && o.GetName() == name {
			return o
		}
	}
	return nil
}

// workloads are the objects that a rollout replaces pods of.
func workloads(objects []*unstructured.Unstructured) (out []*unstructured.Unstructured) {
	for _, o := range objects {
		if k := o.GetKind(); k == "DaemonSet" || k == "Deployment" {
			out = append(out, o)
		}
	}
	return out
}

func isSame(a, b *unstructured.Unstructured) bool {
	return a.GroupVersionKind().GroupKind() == b.GroupVersionKind().GroupKind() && a.GetName() == b.GetName() &&
		a.GetNamespace() == b.GetNamespace()
}
