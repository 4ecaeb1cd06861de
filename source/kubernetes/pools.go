package kubernetes

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"wayleave.dev/api"
	"wayleave.dev/model"
	"wayleave.dev/source"
)

// AddressPools is the resource, for the dynamic client.
func AddressPools() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: api.Group, Version: api.Version, Resource: api.AddressPools}
}

// definedEvery is the interval at which the existence of the kind is checked. A reflector would wait up to half a
// minute, and the elected writer creates the kind within a moment.
const definedEvery = time.Second

// pools watches AddressPools once the API server knows them.
func (s *Source) pools(ctx context.Context) {
	client := s.Dynamic.Resource(AddressPools())
	for ctx.Err() == nil {
		if _, err := client.List(ctx, metav1.ListOptions{Limit: 1}); !apierrors.IsNotFound(err) {
			break // it exists, or the reflector reports the error
		}
		select {
		case <-ctx.Done():
		case <-time.After(definedEvery):
		}
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return client.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return client.Watch(ctx, o)
		},
	}
	sink := &sink[*unstructured.Unstructured, model.AddressPool]{source: s, kind: model.AddressPoolKind,
		convert: addressPool, put: (*model.Writer).PutAddressPool}
	cache.NewReflectorWithOptions(lw, &unstructured.Unstructured{}, sink, cache.ReflectorOptions{
		Name: api.AddressPools, TypeDescription: api.GroupVersion + " " + api.AddressPoolKind,
	}).RunWithContext(ctx)
}

// addressPool converts an object of the dynamic client.
func addressPool(in *unstructured.Unstructured) (*model.AddressPool, []model.Problem) {
	var pool api.AddressPool
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(in.Object, &pool); err != nil {
		return nil, []model.Problem{{Kind: api.AddressPoolKind, Object: model.Name{Name: in.GetName()},
			Reason: fmt.Sprintf("cannot be read: %v", err)}}
	}
	return source.AddressPool(&pool)
}
