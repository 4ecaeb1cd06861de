package writeback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"wayleave.dev/api"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// BGP writes the conditions of BGPPeers, BGPConfigurations and BGPAdvertisements while this replica is elected. It is a
// reconcile.Target.
type BGP struct {
	Dynamic dynamic.Interface
	Store   *model.Store
	// Report gets the problems of an object each time it is looked at; none means that there are none.
	Report func(key string, problems []model.Problem)
	// SetCondition gets the error of a failed creation of the kinds, and nil once they exist.
	SetCondition func(error)
	Health       *reconcile.Health
	Log          *slog.Logger
}

// BGPKey is an object with a condition.
type BGPKey struct{ Kind, Name string }

// String reads "BGPPeer NAME".
func (k BGPKey) String() string { return k.Kind + " " + k.Name }

var _ reconcile.Target[BGPKey, BGPState] = (*BGP)(nil)

// bgpKinds are the kinds that conditions depend on.
const bgpKinds = model.BGPPeerKind | model.BGPConfigurationKind | model.BGPAdvertisementKind | model.AddressPoolKind |
	model.NodeKind

// Run creates the kinds and writes conditions until ctx ends.
func (b *BGP) Run(ctx context.Context) error {
	err := retry(ctx, func() error {
		errs := []error{EnsureAddressPoolCRD(ctx, b.Dynamic)}
		for _, d := range api.BGPDefinitions() {
			errs = append(errs, ensureCRD(ctx, b.Dynamic, d.Kind, d.YAML))
		}
		return errors.Join(errs...)
	}, b.SetCondition)
	if err != nil {
		return err
	}
	loop := &reconcile.Loop[BGPKey, BGPState]{
		Name: "bgp objects", Store: b.Store, Kinds: bgpKinds, Planner: reconcile.PlannerOf(bgpKeys, bgpState),
		Equal: func(x, y BGPState) bool { return x == y }, Target: b, Report: b.Report, Health: b.Health, Log: b.Log,
	}
	return loop.Run(ctx)
}

// Sync implements reconcile.Target.
func (b *BGP) Sync(ctx context.Context, plans map[BGPKey]BGPState) error {
	return b.Apply(ctx, plans, nil)
}

// Apply implements reconcile.Target. Deleted objects have no condition.
func (b *BGP) Apply(ctx context.Context, set map[BGPKey]BGPState, _ []BGPKey) error {
	failed := reconcile.KeyErrors[BGPKey]{}
	for k, s := range set {
		if err := b.write(ctx, k, s); err != nil {
			failed[k] = err
		}
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// write writes the status of an object if it differs.
func (b *BGP) write(ctx context.Context, k BGPKey, s BGPState) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	client := b.Dynamic.Resource(bgpResource(k.Kind))
	have, err := client.Get(ctx, k.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // deleted; the watch will report it
	}
	if err != nil {
		return fmt.Errorf("%s: %w", k, err)
	}
	var old struct {
		Status api.BGPPeerStatus `json:"status"` // that of the other kinds has fewer fields
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(have.Object, &old); err != nil {
		return fmt.Errorf("%s: %w", k, err)
	}
	conditions := old.Status.Conditions
	condition := metav1.Condition{Type: "Accepted", Status: metav1.ConditionFalse, Reason: s.Reason, Message: s.Message,
		ObservedGeneration: have.GetGeneration()}
	if s.Reason == ReasonAccepted {
		condition.Status = metav1.ConditionTrue
	}
	if !meta.SetStatusCondition(&conditions, condition) && old.Status.Nodes == s.Nodes {
		return nil
	}
	raw, err := json.Marshal(map[string]any{"conditions": conditions})
	if err != nil {
		return fmt.Errorf("%s: %w", k, err)
	}
	var status map[string]any
	if err := json.Unmarshal(raw, &status); err != nil {
		return fmt.Errorf("%s: %w", k, err)
	}
	for _, c := range status["conditions"].([]any) { // by JSON it would be a float
		if c := c.(map[string]any); c["observedGeneration"] != nil {
			c["observedGeneration"] = int64(c["observedGeneration"].(float64))
		}
	}
	if k.Kind == api.BGPPeerKind {
		status["nodes"] = int64(s.Nodes)
	}
	have = have.DeepCopy()
	have.Object["status"] = status
	if _, err := client.UpdateStatus(ctx, have, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("%s: write its status: %w", k, err)
	}
	return nil
}

func bgpResource(kind string) schema.GroupVersionResource {
	out := schema.GroupVersionResource{Group: api.Group, Version: api.Version}
	for _, d := range api.BGPDefinitions() {
		if d.Kind == kind {
			out.Resource = d.Resource
		}
	}
	return out
}

// bgpKeys are all objects: a condition depends on Nodes and on objects that others name, and there are few of them.
func bgpKeys(snap model.Snapshot, c model.Changes) []BGPKey {
	keys := map[BGPKey]bool{}
	for kind, name := range map[model.Kind]string{model.BGPPeerKind: api.BGPPeerKind,
		model.BGPConfigurationKind: api.BGPConfigurationKind, model.BGPAdvertisementKind: api.BGPAdvertisementKind} {
		for n := range c.Of(kind) { // also deleted ones
			keys[BGPKey{name, n.Name}] = true
		}
	}
	for p := range snap.BGPPeers() {
		keys[BGPKey{api.BGPPeerKind, p.Name}] = true
	}
	for o := range snap.BGPConfigurations() {
		keys[BGPKey{api.BGPConfigurationKind, o.Name}] = true
	}
	for a := range snap.BGPAdvertisements() {
		keys[BGPKey{api.BGPAdvertisementKind, a.Name}] = true
	}
	return slices.Collect(maps.Keys(keys))
}
