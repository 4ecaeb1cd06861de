package install

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"wayleave.dev/internal/await"
)

// peers is the namespace of the Leases of nodes, which begin with peerLease. By the Lease writerLease in it, the writer
// requests the heartbeat key from nodes (writeback/keysealer.go).
const (
	peers       = "wayleave-peers"
	peerLease   = "wayleave-node-"
	writerLease = "wayleave-writer"
)

// Removal is what an uninstallation removes of a cluster: the workloads, and after the nodes are clean the rest, in
// this order.
type Removal struct {
	workloads, rest []*unstructured.Unstructured
	// Kept are lines about what stays, each with the command that deletes it.
	Kept []string
}

// Objects names the objects, in the order in which they are deleted.
func (r *Removal) Objects() (out []string) {
	for _, o := range append(slices.Clone(r.workloads), r.rest...) {
		out = append(out, nameOf(o))
	}
	return out
}

// PlanUninstall finds what a cluster has of the manifest, of the recorded revision, and of what the writer has made.
// Objects of others are not among it.
func (c Cluster) PlanUninstall(ctx context.Context, manifest []byte) (*Removal, error) {
	all, err := c.everything(ctx, manifest)
	if err != nil {
		return nil, err
	}
	r := &Removal{Kept: []string{
		"the Service kube-dns of kube-system: pods know its address",
		"the kinds of wayleave.dev and their objects: kubectl get crd -o name | grep wayleave.dev | xargs " +
			"kubectl delete",
		"the ConfigMap wayleave-settings, if you made it: kubectl -n " + Namespace +
			" delete configmap wayleave-settings"}}
	for _, o := range slices.Backward(all) {
		now, err := c.live(ctx, o)
		if err != nil {
			return nil, err
		}
		switch kind := o.GetKind(); {
		case now == nil || kind == "CustomResourceDefinition":
		case kind == "DaemonSet" || kind == "Deployment":
			r.workloads = append(r.workloads, now)
		case kind == "Namespace":
			foreign, err := c.foreignIn(ctx, o.GetName())
			if err != nil {
				return nil, err
			}
			if len(foreign) > 0 {
				r.Kept = append(r.Kept, fmt.Sprintf("the namespace %s, which has objects of others: %s", o.GetName(),
					strings.Join(foreign, ", ")))
				continue
			}
			r.rest = append(r.rest, now)
		default:
			r.rest = append(r.rest, now)
		}
	}
	made, err := c.madeByTheWriter(ctx)
	if err != nil {
		return nil, err
	}
	r.rest = append(r.rest, made...)
	revisions, err := c.revisionSecrets(ctx)
	r.rest = append(r.rest, revisions...) // last: what is left after a failure is found by them
	return r, err
}

// everything are the objects of a manifest and of all recorded ones. Settings play no part: a cluster whose settings
// are refused can be cleaned, too.
func (c Cluster) everything(ctx context.Context, manifest []byte) ([]*unstructured.Unstructured, error) {
	all, err := parse(manifest)
	if err != nil {
		return nil, err
	}
	if err := c.refuseHelm(ctx, all); err != nil {
		return nil, err
	}
	revisions, err := c.revisions(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range revisions {
		before, err := parse(r.Manifest)
		if err != nil {
			return nil, fmt.Errorf("revision %d: %w", r.Number, err)
		}
		for _, o := range before {
			if !slices.ContainsFunc(all, func(x *unstructured.Unstructured) bool { return isSame(o, x) }) {
				all = append(all, o)
			}
		}
	}
	return all, nil
}

// foreignIn names what is in the namespace of the nodes' Leases and is not Wayleave's.
func (c Cluster) foreignIn(ctx context.Context, namespace string) (out []string, err error) {
	for _, kind := range []*unstructured.Unstructured{object("", "v1", "ConfigMap", namespace, ""),
		object("", "v1", "Secret", namespace, ""), object("", "v1", "Pod", namespace, ""),
		object("", "v1", "Service", namespace, ""), object("", "v1", "PersistentVolumeClaim", namespace, ""),
		object("apps", "v1", "Deployment", namespace, ""), object("apps", "v1", "DaemonSet", namespace, ""),
		object("apps", "v1", "StatefulSet", namespace, ""), object("batch", "v1", "Job", namespace, ""),
		object("coordination.k8s.io", "v1", "Lease", namespace, "")} {
		at, err := c.at(kind)
		if err != nil {
			return nil, err
		}
		list, err := at.List(ctx, metav1.ListOptions{Limit: 500})
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", kind.GetKind(), namespace, err)
		}
		for _, o := range list.Items {
			isOurs := kind.GetKind() == "Lease" && namespace == peers && (o.GetName() == writerLease ||
				strings.HasPrefix(o.GetName(), peerLease))
			if !isOurs && o.GetName() != "kube-root-ca.crt" {
				out = append(out, kind.GetKind()+" "+o.GetName())
			}
		}
	}
	return out, nil
}

// madeByTheWriter are the objects that the writer has created, by its label. The Lease of the election has none.
func (c Cluster) madeByTheWriter(ctx context.Context) (out []*unstructured.Unstructured, err error) {
	for _, o := range []*unstructured.Unstructured{
		object("", "v1", "Service", "kube-system", "wayleave-ingress"),
		object("networking.k8s.io", "v1", "IngressClass", "", "wayleave"),
		object("coordination.k8s.io", "v1", "Lease", "kube-system", "wayleave-writer")} {
		now, err := c.live(ctx, o)
		if err != nil {
			return nil, err
		}
		if now != nil && (o.GetKind() == "Lease" || now.GetLabels()["app.kubernetes.io/managed-by"] == "wayleave") {
			out = append(out, now)
		}
	}
	return out, nil
}

func (c Cluster) revisionSecrets(ctx context.Context) (out []*unstructured.Unstructured, err error) {
	list, err := c.labelled(ctx)
	for i := range list {
		if strings.HasPrefix(list[i].GetName(), revisionName) {
			out = append(out, &list[i])
		}
	}
	return out, err
}

// RemoveWorkloads deletes the workloads, and waits until their pods have ended: an agent that runs would program its
// node again.
func (c Cluster) RemoveWorkloads(ctx context.Context, r *Removal, out io.Writer) error {
	if err := c.removeAll(ctx, r.workloads, out); err != nil {
		return err
	}
	at, err := c.at(object("", "v1", "Pod", Namespace, ""))
	if err != nil {
		return err
	}
	return await.Success(ctx, pollEvery, func() error {
		list, err := at.List(ctx, metav1.ListOptions{
			LabelSelector: "app.kubernetes.io/name in (wayleave, wayleave-writer)"})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d pods have not ended, such as %s", len(list.Items), list.Items[0].GetName())
		}
		return err
	})
}

// RemoveRest deletes everything else, and returns when all is gone.
func (c Cluster) RemoveRest(ctx context.Context, r *Removal, out io.Writer) error {
	if err := c.removeAll(ctx, r.rest, out); err != nil {
		return err
	}
	for _, o := range append(slices.Clone(r.workloads), r.rest...) {
		if err := await.Success(ctx, pollEvery, func() error {
			now, err := c.live(ctx, o)
			if err == nil && now != nil && now.GetUID() == o.GetUID() {
				err = fmt.Errorf("%s is still there", nameOf(o))
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// removeAll deletes the very objects that were planned: one that was made anew meanwhile is another's.
func (c Cluster) removeAll(ctx context.Context, all []*unstructured.Unstructured, out io.Writer) error {
	for _, o := range all {
		at, err := c.at(o)
		if err != nil {
			return err
		}
		background, uid := metav1.DeletePropagationBackground, o.GetUID()
		options := metav1.DeleteOptions{PropagationPolicy: &background}
		if uid != "" {
			options.Preconditions = &metav1.Preconditions{UID: &uid}
		}
		if err := at.Delete(ctx, o.GetName(), options); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("%s: %w", nameOf(o), err)
		}
		fmt.Fprintf(out, "deleted %s\n", nameOf(o))
	}
	return nil
}
