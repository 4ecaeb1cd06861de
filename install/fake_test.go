package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"wayleave.dev/deploy"
)

// kinds are those of manifests, true for those of a namespace.
var kinds = map[schema.GroupVersionKind]bool{
	{Version: "v1", Kind: "ServiceAccount"}:                                                          true,
	{Version: "v1", Kind: "ConfigMap"}:                                                               true,
	{Version: "v1", Kind: "Secret"}:                                                                  true,
	{Version: "v1", Kind: "Pod"}:                                                                     true,
	{Version: "v1", Kind: "Service"}:                                                                 true,
	{Version: "v1", Kind: "PersistentVolumeClaim"}:                                                   true,
	{Group: "apps", Version: "v1", Kind: "StatefulSet"}:                                              true,
	{Group: "batch", Version: "v1", Kind: "Job"}:                                                     true,
	{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"}:                                     true,
	{Group: "networking.k8s.io", Version: "v1", Kind: "IngressClass"}:                                false,
	{Version: "v1", Kind: "Namespace"}:                                                               false,
	{Group: "apps", Version: "v1", Kind: "DaemonSet"}:                                                true,
	{Group: "apps", Version: "v1", Kind: "Deployment"}:                                               true,
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole"}:                         false,
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"}:                  false,
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role"}:                                true,
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding"}:                         true,
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicy"}:        false,
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicyBinding"}: false,
	{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"}:                 false,
}

// fakeCluster keeps objects with the owners of their fields, as an API server. Lists are atomic: it knows no schemas.
type fakeCluster struct {
	Cluster
	t       *testing.T
	mu      sync.Mutex
	objects map[string]*unstructured.Unstructured
	// status is added to workloads and pods that are read, by "KIND/NAME".
	status map[string]map[string]any
	writes int
	// conflicts counts patches of owners; the first is refused.
	conflicts int
}

func newFake(t *testing.T) *fakeCluster {
	t.Helper()
	lists, mapper := map[schema.GroupVersionResource]string{}, meta.NewDefaultRESTMapper(nil)
	scheme := runtime.NewScheme()
	f := &fakeCluster{t: t, objects: map[string]*unstructured.Unstructured{},
		status: map[string]map[string]any{}}
	for gvk, isNamespaced := range kinds {
		scheme.AddKnownTypeWithName(gvk, &unstructured.Unstructured{})
		scope := meta.RESTScope(meta.RESTScopeRoot)
		if isNamespaced {
			scope = meta.RESTScopeNamespace
		}
		mapper.Add(gvk, scope)
		gvr, _ := meta.UnsafeGuessKindToResource(gvk)
		lists[gvr] = gvk.Kind + "List"
	}
	client := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(scheme, lists)
	client.PrependReactor("*", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		o, err := f.react(a)
		return true, o, err
	})
	f.Cluster = Cluster{Client: client, Mapper: mapper}
	return f
}

func (f *fakeCluster) react(a clienttesting.Action) (runtime.Object, error) {
	prefix := a.GetResource().Resource + "/" + a.GetNamespace() + "/"
	switch a := a.(type) {
	case clienttesting.GetActionImpl:
		o := f.objects[prefix+a.Name]
		if o == nil {
			return nil, apierrors.NewNotFound(a.Resource.GroupResource(), a.Name)
		}
		return f.withStatus(o), nil
	case clienttesting.ListActionImpl:
		return f.list(prefix, a.ListRestrictions.Labels), nil
	case clienttesting.CreateActionImpl:
		o := a.GetObject().(*unstructured.Unstructured)
		if f.objects[prefix+o.GetName()] != nil {
			return nil, apierrors.NewAlreadyExists(a.Resource.GroupResource(), o.GetName())
		}
		return f.write(prefix+o.GetName(), o, a.CreateOptions.FieldManager)
	case clienttesting.UpdateActionImpl:
		o := a.GetObject().(*unstructured.Unstructured)
		return f.write(prefix+o.GetName(), o, a.UpdateOptions.FieldManager)
	case clienttesting.PatchActionImpl:
		return f.patch(prefix+a.Name, a)
	case clienttesting.DeleteActionImpl:
		if f.objects[prefix+a.Name] == nil {
			return nil, apierrors.NewNotFound(a.Resource.GroupResource(), a.Name)
		}
		f.writes++
		delete(f.objects, prefix+a.Name)
		return nil, nil
	}
	return nil, fmt.Errorf("the fake has no %T", a)
}

func (f *fakeCluster) list(prefix string, match labels.Selector) *unstructured.UnstructuredList {
	out := &unstructured.UnstructuredList{}
	for _, key := range slices.Sorted(maps.Keys(f.objects)) {
		if o := f.objects[key]; strings.HasPrefix(key, prefix) && match.Matches(labels.Set(o.GetLabels())) {
			out.Items = append(out.Items, *f.withStatus(o))
		}
	}
	return out
}

func (f *fakeCluster) manager(gvk schema.GroupVersionKind) *managedfields.FieldManager {
	m, err := managedfields.NewDefaultFieldManager(managedfields.NewDeducedTypeConverter(), plain{},
		plain{}, plain{}, gvk,
		gvk.GroupVersion(), "", nil)
	if err != nil {
		f.t.Error(err)
	}
	return m
}

// plain neither converts objects nor adds defaults. A Scheme cannot tell kinds apart that have one Go type.
type plain struct{}

func (plain) Default(runtime.Object) {}

func (plain) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(gvk)
	return o, nil
}

func (plain) Convert(_, _, _ any) error { return errors.New("not used") }

func (plain) ConvertToVersion(o runtime.Object, _ runtime.GroupVersioner) (runtime.Object, error) {
	return o.DeepCopyObject(), nil
}

func (plain) ConvertFieldLabel(schema.GroupVersionKind, string, string) (string, string, error) {
	return "", "", errors.New("not used")
}

func (f *fakeCluster) before(key string, gvk schema.GroupVersionKind) *unstructured.Unstructured {
	if o := f.objects[key]; o != nil {
		return o.DeepCopy()
	}
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(gvk)
	return o
}

func (f *fakeCluster) write(key string, o *unstructured.Unstructured, manager string) (runtime.Object, error) {
	after, err := f.manager(o.GroupVersionKind()).Update(f.before(key, o.GroupVersionKind()), o.DeepCopy(), manager)
	if err != nil {
		return nil, err
	}
	return f.store(key, after), nil
}

func (f *fakeCluster) store(key string, o runtime.Object) runtime.Object {
	u := o.(*unstructured.Unstructured).DeepCopy()
	f.writes++
	if now := f.objects[key]; now != nil {
		u.SetResourceVersion(now.GetResourceVersion())
		if reflect.DeepEqual(now.Object, u.Object) {
			return u
		}
	}
	u.SetResourceVersion(fmt.Sprint(f.writes))
	f.objects[key] = u
	return u.DeepCopy()
}

func (f *fakeCluster) patch(key string, a clienttesting.PatchActionImpl) (runtime.Object, error) {
	if a.PatchType == types.JSONPatchType { // the owners of fields
		if f.conflicts++; f.conflicts == 1 { // as if the status had changed meanwhile
			return nil, apierrors.NewConflict(a.Resource.GroupResource(), a.Name, errors.New("changed"))
		}
		var raw []struct {
			Path  string          `json:"path"`
			Value json.RawMessage `json:"value"`
		}
		if err := json.Unmarshal(a.Patch, &raw); err != nil {
			return nil, err
		}
		u := f.objects[key].DeepCopy()
		for _, step := range raw {
			if step.Path != "/metadata/managedFields" {
				continue
			}
			var owners []metav1.ManagedFieldsEntry
			if err := json.Unmarshal(step.Value, &owners); err != nil {
				return nil, err
			}
			u.SetManagedFields(owners)
		}
		return f.store(key, u), nil
	}
	o, err := decode(a.Patch)
	if err != nil {
		return nil, err
	}
	after, err := f.manager(o.GroupVersionKind()).Apply(f.before(key, o.GroupVersionKind()), o,
		a.PatchOptions.FieldManager,
		*a.PatchOptions.Force)
	if err != nil || len(a.PatchOptions.DryRun) > 0 {
		return after, err
	}
	return f.store(key, after), nil
}

func (f *fakeCluster) withStatus(o *unstructured.Unstructured) *unstructured.Unstructured {
	u := o.DeepCopy()
	if s := f.status[u.GetKind()+"/"+u.GetName()]; s != nil {
		u.Object["status"] = s
	}
	return u
}

func (f *fakeCluster) setStatus(kind, name, status string) {
	f.t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(status), &v); err != nil {
		f.t.Fatal(err)
	}
	for key, n := range v { // numbers of objects are integers
		if x, ok := n.(float64); ok {
			v[key] = int64(x)
		}
	}
	f.mu.Lock()
	f.status[kind+"/"+name] = v
	f.mu.Unlock()
}

// get returns an object of a manifest as the cluster has it, nil without one.
func (f *fakeCluster) get(kind, namespace, name string) *unstructured.Unstructured {
	f.t.Helper()
	for gvk := range kinds {
		if gvk.Kind == kind {
			o, err := f.live(f.t.Context(), object(gvk.Group, gvk.Version, kind, namespace, name))
			if err != nil {
				f.t.Fatal(err)
			}
			return o
		}
	}
	f.t.Fatalf("no kind %s", kind)
	return nil
}

// put stores an object as another client does.
func (f *fakeCluster) put(o *unstructured.Unstructured, manager string) {
	f.t.Helper()
	at, err := f.at(o)
	if err != nil {
		f.t.Fatal(err)
	}
	if now, _ := f.live(f.t.Context(), o); now != nil {
		_, err = at.Update(f.t.Context(), o, metav1.UpdateOptions{FieldManager: manager})
	} else {
		_, err = at.Create(f.t.Context(), o, metav1.CreateOptions{FieldManager: manager})
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// edit changes a settings file, as `kubectl edit` does.
func (f *fakeCluster) edit(configMap, key, text string) {
	f.t.Helper()
	o := f.get("ConfigMap", Namespace, configMap)
	if o == nil {
		o = object("", "v1", "ConfigMap", Namespace, configMap)
	}
	if err := unstructured.SetNestedField(o.Object, text, "data", key); err != nil {
		f.t.Fatal(err)
	}
	f.put(o, "kubectl-edit")
}

func (f *fakeCluster) settings(configMap string) string {
	f.t.Helper()
	return settingsOf(f.get("ConfigMap", Namespace, configMap))
}

func manifestOf(t *testing.T, version string) []byte {
	t.Helper()
	m, err := deploy.Release{Image: "registry.test/wayleave:" + version, Version: version}.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return m
}
