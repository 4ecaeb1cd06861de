package install

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// foreign are objects that an uninstallation must leave: of others, or of the operator.
func foreign() []*unstructured.Unstructured {
	class := object("networking.k8s.io", "v1", "IngressClass", "", "nginx")
	return []*unstructured.Unstructured{object("", "v1", "ConfigMap", Namespace, "coredns"), class,
		object("", "v1", "Service", "kube-system", "kube-dns"), object("", "v1", "ConfigMap", Namespace, operatorsMap),
		object("apps", "v1", "DaemonSet", "shop", "wayleave"), object("", "v1", "Secret", Namespace, "bootstrap-token"),
		object("rbac.authorization.k8s.io", "v1", "ClusterRole", "", "admin"),
		object("coordination.k8s.io", "v1", "Lease", "kube-system", "other")}
}

// made are objects that the writer makes.
func made() []*unstructured.Unstructured {
	out := []*unstructured.Unstructured{object("", "v1", "Service", "kube-system", "wayleave-ingress"),
		object("networking.k8s.io", "v1", "IngressClass", "", "wayleave")}
	for _, o := range out {
		o.SetLabels(map[string]string{"app.kubernetes.io/managed-by": "wayleave"})
	}
	return append(out, object("coordination.k8s.io", "v1", "Lease", "kube-system", "wayleave-writer"),
		object("coordination.k8s.io", "v1", "Lease", peers, peerLease+"n1"),
		object("coordination.k8s.io", "v1", "Lease", peers, writerLease))
}

func (f *fakeCluster) uninstall(ctx context.Context) (*Removal, error) {
	r, err := f.PlanUninstall(ctx, manifestOf(f.t, "v0.1.0"))
	if err != nil {
		return r, err
	}
	if err := f.RemoveWorkloads(ctx, r, io.Discard); err != nil {
		return r, err
	}
	return r, f.RemoveRest(ctx, r, io.Discard)
}

// Everything of Wayleave goes, the workloads first, and nothing of others.
func TestUninstallRemovesEverythingOfOursAndNothingElse(t *testing.T) {
	f := newFake(t)
	for _, o := range foreign() {
		f.put(o, "other")
	}
	f.install(manifestOf(t, "v0.1.0"))
	for _, o := range made() {
		f.put(o, Manager)
	}
	r, err := f.uninstall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	objects := r.Objects()
	last := 0
	for i, name := range objects {
		if strings.HasPrefix(name, "DaemonSet") || strings.HasPrefix(name, "Deployment") {
			last = i
		}
	}
	if last != 1 || !strings.HasPrefix(objects[len(objects)-1], "Secret kube-system/wayleave-revision-") {
		t.Errorf("the order is %v", objects)
	}
	for _, o := range foreign() {
		if now, err := f.live(t.Context(), o); err != nil || now == nil {
			t.Errorf("%s is gone: %v", nameOf(o), err)
		}
	}
	f.mu.Lock()
	var left []string
	for key := range f.objects {
		left = append(left, key)
	}
	f.mu.Unlock()
	// The fake does not empty a namespace that is deleted.
	want := len(foreign()) + 2
	if len(left) != want || !slices.Contains(left, "leases/"+peers+"/"+peerLease+"n1") {
		t.Errorf("left: %v", left)
	}
	if again, err := f.uninstall(t.Context()); err != nil || len(again.Objects()) != 0 {
		t.Errorf("again: %v, %v", err, again.Objects())
	}
}

// A namespace is deleted with all that is in it, so one that has something of others stays; so do objects that have
// our names and not our label.
func TestUninstallLosesNoForeignObject(t *testing.T) {
	f := newFake(t)
	f.install(manifestOf(t, "v0.1.0"))
	mine := []*unstructured.Unstructured{object("", "v1", "ConfigMap", peers, "notes"),
		object("networking.k8s.io", "v1", "IngressClass", "", "wayleave")}
	for _, o := range mine {
		f.put(o, "other")
	}
	r, err := f.uninstall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(r.Kept, "\n"), "ConfigMap notes") || f.get("Namespace", "", peers) == nil {
		t.Errorf("kept: %v", r.Kept)
	}
	for _, o := range mine {
		if now, err := f.live(t.Context(), o); err != nil || now == nil {
			t.Errorf("%s is gone: %v", nameOf(o), err)
		}
	}
}

// While a pod of an agent runs, nothing but the workloads is deleted, and the pod is named.
func TestUninstallWaitsForAgents(t *testing.T) {
	f := newFake(t)
	f.install(manifestOf(t, "v0.1.0"))
	p := object("", "v1", "Pod", Namespace, "wayleave-x")
	p.SetLabels(map[string]string{"app.kubernetes.io/name": "wayleave"})
	f.put(p, "kubelet")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := f.uninstall(ctx); err == nil || !strings.Contains(err.Error(), "wayleave-x") {
		t.Errorf("%v", err)
	}
	if f.get("ConfigMap", Namespace, "wayleave") == nil || f.get("DaemonSet", Namespace, "wayleave") != nil {
		t.Error("the settings are gone, or the DaemonSet is there")
	}
}

// Settings that no version takes, and objects that only an earlier version had, are no reason to stay.
func TestUninstallNeedsNoGoodSettings(t *testing.T) {
	f := newFake(t)
	old := string(manifestOf(t, "v0.1.0")) + "\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata:\n" +
		"  name: wayleave-old\n  namespace: kube-system\n"
	f.install([]byte(old))
	f.edit(operatorsMap, settingsKey, "mode: nonsense\n")
	r, err := f.uninstall(t.Context())
	if err != nil || !slices.Contains(r.Objects(), "ServiceAccount kube-system/wayleave-old") {
		t.Errorf("%v: %v", err, r)
	}
	if f.get("DaemonSet", Namespace, "wayleave") != nil || f.get("ConfigMap", Namespace, operatorsMap) == nil {
		t.Error("the DaemonSet is there, or the operator's settings are gone")
	}
}

// An installation of Helm is Helm's to remove.
func TestUninstallRefusesHelm(t *testing.T) {
	f := newFake(t)
	f.install(manifestOf(t, "v0.1.0"))
	ds := f.get("DaemonSet", Namespace, "wayleave")
	ds.SetAnnotations(map[string]string{"meta.helm.sh/release-name": "net"})
	f.put(ds, "helm")
	if _, err := f.uninstall(t.Context()); err == nil || !strings.Contains(err.Error(), "Helm release net") {
		t.Errorf("%v", err)
	}
}
