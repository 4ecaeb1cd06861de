package install

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const (
	revisionLabel = "wayleave.dev/revision"
	revisionName  = "wayleave-revision-"
	manifestKey   = "manifest.yaml.gz"
	// maxRevisions is how many are kept.
	maxRevisions = 5
	lastApplied  = "kubectl.kubernetes.io/last-applied-configuration"
)

// MaxManifest bounds a manifest, in bytes.
const MaxManifest = 4 << 20

// Revision is a manifest that was applied: a Secret wayleave-revision-N in kube-system. It has the manifest as it was
// released, without the settings of the cluster.
type Revision struct {
	Number   int
	Version  string
	Manifest []byte
}

// labelled returns the Secrets that have the label of revisions.
func (c Cluster) labelled(ctx context.Context) ([]unstructured.Unstructured, error) {
	at, err := c.at(object("", "v1", "Secret", Namespace, ""))
	if err != nil {
		return nil, err
	}
	list, err := at.List(ctx, metav1.ListOptions{LabelSelector: revisionLabel})
	if err != nil {
		return nil, fmt.Errorf("revisions: %w", err)
	}
	return list.Items, nil
}

// revisions returns the recorded revisions, oldest first.
func (c Cluster) revisions(ctx context.Context) ([]Revision, error) {
	list, err := c.labelled(ctx)
	if err != nil {
		return nil, err
	}
	var out []Revision
	for _, o := range list {
		r, err := revisionOf(&o)
		if err != nil {
			return nil, fmt.Errorf("Secret %s/%s: %w", Namespace, o.GetName(), err)
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Revision) int { return a.Number - b.Number })
	return out, nil
}

func revisionOf(o *unstructured.Unstructured) (r Revision, err error) {
	if r.Number, err = strconv.Atoi(o.GetLabels()[revisionLabel]); err != nil || r.Number < 1 {
		return r, fmt.Errorf("label %s: found %q; a number from 1 is allowed", revisionLabel,
			o.GetLabels()[revisionLabel])
	}
	r.Version = o.GetLabels()[versionLabel]
	text, _, _ := unstructured.NestedString(o.Object, "data", manifestKey)
	zip, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, strings.NewReader(text)))
	if err != nil {
		return r, fmt.Errorf("%s: %w", manifestKey, err)
	}
	if r.Manifest, err = io.ReadAll(io.LimitReader(zip, MaxManifest+1)); err != nil {
		return r, fmt.Errorf("%s: %w", manifestKey, err)
	}
	if len(r.Manifest) > MaxManifest {
		return r, fmt.Errorf("%s: more than %d bytes", manifestKey, MaxManifest)
	}
	return r, nil
}

// record stores a revision, and deletes those that are too old. It fails if another command has recorded the number.
func (c Cluster) record(ctx context.Context, r Revision) error {
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	_, err := zip.Write(r.Manifest)
	if err := errors.Join(err, zip.Close()); err != nil {
		return fmt.Errorf("revision %d: %w", r.Number, err)
	}
	o := object("", "v1", "Secret", Namespace, revisionName+strconv.Itoa(r.Number))
	o.SetLabels(map[string]string{"app.kubernetes.io/name": "wayleave", revisionLabel: strconv.Itoa(r.Number),
		versionLabel: r.Version})
	o.Object["type"] = "wayleave.dev/revision"
	o.Object["data"] = map[string]any{manifestKey: base64.StdEncoding.EncodeToString(packed.Bytes())}
	at, err := c.at(o)
	if err != nil {
		return err
	}
	_, err = at.Create(ctx, o, metav1.CreateOptions{FieldManager: Manager})
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("revision %d was recorded by another command; look what it did, and start again", r.Number)
	}
	if err != nil {
		return fmt.Errorf("revision %d: %w", r.Number, err)
	}
	return c.forget(ctx, r.Number-maxRevisions)
}

// forget deletes revisions up to a number.
func (c Cluster) forget(ctx context.Context, upTo int) error {
	all, err := c.revisions(ctx)
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.Number > upTo {
			continue
		}
		o := object("", "v1", "Secret", Namespace, revisionName+strconv.Itoa(r.Number))
		if err := c.remove(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// adopt makes a revision of what the cluster has, if it was installed by kubectl: objects as kubectl applied them,
// otherwise as they are.
func (c Cluster) adopt(ctx context.Context, target []*unstructured.Unstructured) (*Revision, error) {
	var docs [][]byte
	var found []*unstructured.Unstructured
	for _, o := range target {
		now, err := c.live(ctx, o)
		if err != nil {
			return nil, err
		}
		if now == nil {
			continue
		}
		was := bare(now)
		if text := now.GetAnnotations()[lastApplied]; text != "" {
			if was, err = decode([]byte(text)); err != nil {
				return nil, fmt.Errorf("%s: annotation %s: %w", nameOf(now), lastApplied, err)
			}
			unstructured.RemoveNestedField(was.Object, "metadata", "annotations", lastApplied)
		}
		raw, err := yaml.Marshal(was.Object)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", nameOf(now), err)
		}
		docs, found = append(docs, raw), append(found, was)
	}
	if find(found, "DaemonSet", "wayleave") == nil {
		return nil, nil
	}
	return &Revision{Version: versionOf(found), Manifest: bytes.Join(docs, []byte("\n---\n"))}, nil
}

// bare returns an object without what the API server adds to it.
func bare(o *unstructured.Unstructured) *unstructured.Unstructured {
	o = o.DeepCopy()
	for _, field := range []string{"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp",
		"selfLink"} {
		unstructured.RemoveNestedField(o.Object, "metadata", field)
	}
	unstructured.RemoveNestedField(o.Object, "metadata", "annotations", lastApplied)
	unstructured.RemoveNestedField(o.Object, "metadata", "annotations", "deprecated.daemonset.template.generation")
	unstructured.RemoveNestedField(o.Object, "metadata", "annotations", "deployment.kubernetes.io/revision")
	if len(o.GetAnnotations()) == 0 {
		unstructured.RemoveNestedField(o.Object, "metadata", "annotations")
	}
	unstructured.RemoveNestedField(o.Object, "status")
	return o
}
