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
func AddressPools() schema.GroupVersionResource { return resource(api.AddressPools) }

func resource(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: api.Group, Version: api.Version, Resource: name}
}

// definedEvery is the interval at which the existence of the kind is checked. A reflector would wait up to half a
// minute, and the elected writer creates the kind within a moment.
const definedEvery = time.Second

// pools watches AddressPools once the API server knows them.
func (s *Source) pools(ctx context.Context) {
	custom(ctx, s, api.AddressPools, model.AddressPoolKind, source.AddressPool, (*model.Writer).PutAddressPool)
}

// custom watches a kind of ours once the API server knows it.
func custom[I, O any](ctx context.Context, s *Source, name string, kind model.Kind,
	convert func(*I) (*O, []model.Problem), put func(*model.Writer, *O)) {
	client := s.Dynamic.Resource(resource(name))
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
	sink := &sink[*unstructured.Unstructured, O]{source: s, kind: kind, convert: typed(kind, convert), put: put}
	cache.NewReflectorWithOptions(lw, &unstructured.Unstructured{}, sink, cache.ReflectorOptions{
		Name: name, TypeDescription: api.GroupVersion + " " + kind.String(),
	}).RunWithContext(ctx)
}

// typed converts an object of the dynamic client first. One that cannot be read is a problem, and not in the model.
func typed[I, O any](kind model.Kind, convert func(*I) (*O, []model.Problem)) func(*unstructured.Unstructured) (
	*O, []model.Problem) {
	return func(in *unstructured.Unstructured) (*O, []model.Problem) {
		o := new(I)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(in.Object, o); err != nil {
			return nil, []model.Problem{{Kind: kind.String(), Object: model.Name{Name: in.GetName()},
				Reason: fmt.Sprintf("cannot be read: %v", err)}}
		}
		return convert(o)
	}
}
