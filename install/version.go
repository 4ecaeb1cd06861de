package install

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/version"
)

const versionLabel = "app.kubernetes.io/version"

// versionOf returns the version of a manifest: the label of its DaemonSet, otherwise the tag of its image.
func versionOf(objects []*unstructured.Unstructured) string {
	ds := find(objects, "DaemonSet", "wayleave")
	if ds == nil {
		return "unknown"
	}
	if v := ds.GetLabels()[versionLabel]; v != "" {
		return v
	}
	for _, image := range images(ds) {
		image, _, _ = strings.Cut(image, "@")
		if i := strings.LastIndex(image, ":"); i > strings.LastIndex(image, "/") {
			return image[i+1:]
		}
	}
	return "unknown"
}

// checkStep refuses an upgrade that a rollback could not undo: each version reads the state, Leases and settings of the
// minor version before it and after it, and of no other.
func checkStep(from, to string) error {
	a, errA := version.ParseSemantic(from)
	b, errB := version.ParseSemantic(to)
	if errA != nil || errB != nil {
		return nil // a build that is no release, such as dev: nothing is known
	}
	switch {
	case b.LessThan(a):
		return fmt.Errorf("%s is older than %s, which the cluster has; run `wayleave rollback`", to, from)
	case a.Major() != b.Major() || b.Minor() > a.Minor()+1:
		return fmt.Errorf("%s to %s skips a minor version, and could not be rolled back; upgrade to v%d.%d first", from,
			to,
			a.Major(), a.Minor()+1)
	}
	return nil
}

// images returns the images of a workload's containers, without duplicates.
func images(o *unstructured.Unstructured) (out []string) {
	seen := map[string]bool{}
	for _, field := range []string{"initContainers", "containers"} {
		list, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", field)
		for _, c := range list {
			m, _ := c.(map[string]any)
			if image, _ := m["image"].(string); image != "" && !seen[image] {
				seen[image] = true
				out = append(out, image)
			}
		}
	}
	return out
}
