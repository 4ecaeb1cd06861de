// Package install brings a version of Wayleave onto a cluster, and back to the version before, through the API alone:
// the commands install, upgrade and rollback.
//
// Invariants: a setting that somebody changed in the cluster stays; what would not start is refused before anything is
// changed; the manifest of the version before is in the cluster, so that a rollback needs no file.
package install

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

const (
	// Manager owns the fields that the commands apply.
	Manager = "wayleave"
	// Namespace is where the manifest puts its workloads.
	Namespace = "kube-system"
)

// Cluster is the API of a cluster.
type Cluster struct {
	Client dynamic.Interface
	Mapper meta.RESTMapper
}

// New returns the API to which a configuration leads.
func New(cfg *rest.Config) (Cluster, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst, cfg.UserAgent = 50, 100, "wayleave"
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return Cluster{}, fmt.Errorf("API: %w", err)
	}
	found, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return Cluster{}, fmt.Errorf("API: %w", err)
	}
	return Cluster{Client: client,
		Mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(found))}, nil
}

// at returns the API of an object's kind and namespace.
func (c Cluster) at(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := o.GroupVersionKind()
	m, err := c.Mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", nameOf(o), err)
	}
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		return c.Client.Resource(m.Resource).Namespace(o.GetNamespace()), nil
	}
	return c.Client.Resource(m.Resource), nil
}

// live returns an object as it is in the cluster, nil if it is not there.
func (c Cluster) live(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	at, err := c.at(o)
	if err != nil {
		return nil, err
	}
	now, err := at.Get(ctx, o.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", nameOf(o), err)
	}
	return now, nil
}

// nameOf names an object in messages, as kubectl does: daemonset.apps/kube-system/wayleave.
func nameOf(o *unstructured.Unstructured) string {
	name := o.GetName()
	if ns := o.GetNamespace(); ns != "" {
		name = ns + "/" + name
	}
	return o.GetKind() + " " + name
}

func object(group, version, kind, namespace, name string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(schema.GroupVersionKind{Group: group, Version: version, Kind: kind})
	o.SetNamespace(namespace)
	o.SetName(name)
	return o
}
