package writeback

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"wayleave.dev/api"
	"wayleave.dev/loadbalancer"
)

// digestAnnotation is the digest of the definition; a different one is applied again.
const digestAnnotation = "wayleave.dev/digest"

func poolResource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: api.Group, Version: api.Version, Resource: api.AddressPools}
}

// EnsureAddressPoolCRD creates the kind AddressPool in the API server, or updates it to this version.
func EnsureAddressPoolCRD(ctx context.Context, client dynamic.Interface) error {
	return ensureCRD(ctx, client, api.AddressPoolKind, api.AddressPoolCRD)
}

// ensureCRD creates a kind in the API server, or updates it to this version.
func ensureCRD(ctx context.Context, client dynamic.Interface, kind string, definition []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	raw, err := yaml.YAMLToJSON(definition)
	if err != nil {
		return fmt.Errorf("definition of %s: %w", kind, err)
	}
	crd := &unstructured.Unstructured{}
	if err := crd.UnmarshalJSON(raw); err != nil {
		return fmt.Errorf("definition of %s: %w", kind, err)
	}
	sum := sha256.Sum256(raw)
	digest := hex.EncodeToString(sum[:8])
	crd.SetAnnotations(map[string]string{digestAnnotation: digest})
	crds := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1",
		Resource: "customresourcedefinitions"})
	have, err := crds.Get(ctx, crd.GetName(), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("definition of %s: %w", kind, err)
	}
	if err == nil && have.GetAnnotations()[digestAnnotation] == digest {
		return nil
	}
	if _, err := crds.Apply(ctx, crd.GetName(), crd, metav1.ApplyOptions{FieldManager: "wayleave",
		Force: true}); err != nil {
		return fmt.Errorf("definition of %s: %w", kind, err)
	}
	return nil
}

// pools writes the status of pools that may have changed.
func (b *Balancer) pools(ctx context.Context) error {
	if time.Since(b.poolsAt) < b.poolsEvery {
		return nil
	}
	var failed []error
	for _, name := range b.allocator.Touched() {
		s, ok, problems := b.allocator.Pool(name)
		if !ok {
			continue
		}
		b.report("AddressPool "+name, problems)
		if known, ok := b.known[name]; ok && known == s {
			continue
		}
		b.poolsAt = time.Now()
		if err := b.writePool(ctx, name, s); err != nil {
			b.allocator.Touch(name)
			failed = append(failed, err)
			continue
		}
		b.known[name] = s
	}
	return errors.Join(failed...)
}

func (b *Balancer) writePool(ctx context.Context, name string, s loadbalancer.PoolStatus) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	pools := b.Dynamic.Resource(poolResource())
	have, err := pools.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // deleted; the watch will report it
	}
	if err != nil {
		return fmt.Errorf("AddressPool %s: %w", name, err)
	}
	var old api.AddressPool
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(have.Object, &old); err != nil {
		return fmt.Errorf("AddressPool %s: %w", name, err)
	}
	now := api.AddressPoolStatus{Used: s.Used, Free: s.Free, Conditions: old.Status.Conditions}
	condition := metav1.Condition{Type: "Ready", Status: metav1.ConditionFalse, Reason: s.Reason, Message: s.Message,
		ObservedGeneration: old.Generation}
	if s.Reason == loadbalancer.ReasonReady {
		condition.Status = metav1.ConditionTrue
	}
	changed := meta.SetStatusCondition(&now.Conditions, condition)
	_, there := have.Object["status"]
	if there && !changed && now.Used == old.Status.Used && now.Free == old.Status.Free {
		return nil
	}
	raw, err := json.Marshal(now)
	if err != nil {
		return fmt.Errorf("AddressPool %s: %w", name, err)
	}
	var status map[string]any
	if err := json.Unmarshal(raw, &status); err != nil {
		return fmt.Errorf("AddressPool %s: %w", name, err)
	}
	status["used"], status["free"] = now.Used, now.Free // by JSON they would be floats
	have.Object["status"] = status
	if _, err := pools.UpdateStatus(ctx, have, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("AddressPool %s: write its status: %w", name, err)
	}
	return nil
}
