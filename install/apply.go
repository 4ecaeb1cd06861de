package install

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/pmezard/go-difflib/difflib"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/util/csaupgrade"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/yaml"
)

// Apply records the plan's revision, and applies its objects. Pods are replaced after it returns: see Wait.
func (c Cluster) Apply(ctx context.Context, p *Plan, out io.Writer) error {
	if err := c.recordPlan(ctx, p); err != nil {
		return err
	}
	created, changed := 0, 0
	for _, o := range p.objects {
		now, err := c.live(ctx, o)
		if err != nil {
			return err
		}
		if now != nil {
			if now, err = c.own(ctx, now); err != nil {
				return err
			}
		}
		after, err := c.apply(ctx, o, false)
		if err != nil {
			return err
		}
		switch {
		case now == nil:
			created++
		case after.GetResourceVersion() != now.GetResourceVersion():
			changed++
		}
	}
	_, err := fmt.Fprintf(out, "%d objects created, %d changed, %d as they were\n", created, changed,
		len(p.objects)-created-changed)
	return err
}

// recordPlan records the revision before the plan, if it was installed by kubectl, and the plan's. A manifest that is
// the current revision is not recorded again.
func (c Cluster) recordPlan(ctx context.Context, p *Plan) error {
	p.To.Number = 1
	if p.From != nil {
		if p.From.Number == 0 {
			p.From.Number = 1
			if err := c.record(ctx, *p.From); err != nil {
				return err
			}
		}
		if bytes.Equal(p.From.Manifest, p.To.Manifest) {
			p.To.Number = p.From.Number
			return nil
		}
		p.To.Number = p.From.Number + 1
	}
	return c.record(ctx, p.To)
}

// own takes over the fields that `kubectl apply` owns, so that those that the new version does not have are removed. It
// tries again if the object changes meanwhile, as the status of a workload does. It returns the object as it is then.
func (c Cluster) own(ctx context.Context, now *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	at, err := c.at(now)
	if err != nil {
		return nil, err
	}
	name := now.GetName()
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		var err error
		if now, err = at.Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		patch, err := csaupgrade.UpgradeManagedFieldsPatch(now, sets.New("kubectl-client-side-apply"), Manager)
		if err != nil || len(patch) == 0 {
			return err
		}
		now, err = at.Patch(ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: Manager})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: owner of fields: %w", name, err)
	}
	return now, nil
}

// apply applies an object. What others have set in its fields is overwritten: the settings of people are in the
// object already.
func (c Cluster) apply(ctx context.Context, o *unstructured.Unstructured,
	dryRun bool) (*unstructured.Unstructured, error) {
	at, err := c.at(o)
	if err != nil {
		return nil, err
	}
	options := metav1.ApplyOptions{FieldManager: Manager, Force: true}
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	after, err := at.Apply(ctx, o.GetName(), o, options)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", nameOf(o), err)
	}
	return after, nil
}

// Prune deletes the objects that only the version before has. It is called after the rollout: pods of the version
// before may need them until they end.
func (c Cluster) Prune(ctx context.Context, p *Plan, out io.Writer) error {
	for _, o := range p.prune {
		if err := c.remove(ctx, o); err != nil {
			return err
		}
		fmt.Fprintf(out, "deleted %s, which %s does not have\n", nameOf(o), p.To.Version)
	}
	return nil
}

func (c Cluster) remove(ctx context.Context, o *unstructured.Unstructured) error {
	at, err := c.at(o)
	if err != nil {
		return err
	}
	background := metav1.DeletePropagationBackground
	err = at.Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("%s: %w", nameOf(o), err)
	}
	return nil
}

// Diff prints how the plan would change the cluster, as the API server computes it, and changes nothing.
func (c Cluster) Diff(ctx context.Context, p *Plan, out io.Writer) error {
	for _, o := range p.objects {
		now, err := c.live(ctx, o)
		if err != nil {
			return err
		}
		after, err := c.dryRun(ctx, o, p)
		if err != nil {
			return err
		}
		if err := writeDiff(out, nameOf(o), now, after); err != nil {
			return err
		}
	}
	for _, o := range p.prune {
		fmt.Fprintf(out, "%s: deleted after the rollout\n", nameOf(o))
	}
	return nil
}

// dryRun returns an object as it would become. The API server cannot say that of an object whose namespace the plan
// creates: it is returned as it is in the manifest.
func (c Cluster) dryRun(ctx context.Context, o *unstructured.Unstructured,
	p *Plan) (*unstructured.Unstructured, error) {
	if space := find(p.objects, "Namespace", o.GetNamespace()); space != nil {
		now, err := c.live(ctx, space)
		if err != nil {
			return nil, err
		}
		if now == nil {
			return o, nil
		}
	}
	return c.apply(ctx, o, true)
}

func writeDiff(out io.Writer, name string, now, after *unstructured.Unstructured) error {
	before := ""
	if now != nil {
		raw, err := yaml.Marshal(bare(now).Object)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		before = string(raw)
	}
	raw, err := yaml.Marshal(bare(after).Object)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if before == string(raw) {
		return nil
	}
	err = difflib.WriteUnifiedDiff(out, difflib.UnifiedDiff{A: difflib.SplitLines(before),
		B:        difflib.SplitLines(string(raw)),
		FromFile: name + " (cluster)", ToFile: name + " (planned)", Context: 3})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
