package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Plan is what a command would do to a cluster.
type Plan struct {
	// From is what the cluster has, nil for nothing. To is what it will have.
	From *Revision
	To   Revision
	// Settings says what becomes of the settings.
	Settings Settings
	// objects are those of To, with the settings of the cluster. prune are those that From has and To has not.
	objects, prune []*unstructured.Unstructured
}

// PlanInstall plans the first installation, or repairs one of the same version.
func (c Cluster) PlanInstall(ctx context.Context, manifest []byte) (*Plan, error) {
	p, err := c.plan(ctx, manifest, nil)
	if err == nil && p.From != nil && p.From.Version != p.To.Version {
		return nil, fmt.Errorf("the cluster has %s already; run `wayleave upgrade`", p.From.Version)
	}
	return p, err
}

// PlanUpgrade plans the step to a later version.
func (c Cluster) PlanUpgrade(ctx context.Context, manifest []byte) (*Plan, error) {
	p, err := c.plan(ctx, manifest, nil)
	if err != nil {
		return nil, err
	}
	if p.From == nil {
		return nil, errors.New("the cluster has no Wayleave; run `wayleave install`")
	}
	return p, checkStep(p.From.Version, p.To.Version)
}

// PlanRollback plans the way back to a recorded revision. Zero is the one before the current.
func (c Cluster) PlanRollback(ctx context.Context, number int) (*Plan, error) {
	all, err := c.revisions(ctx)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New("no revision is recorded; only `wayleave install` and `wayleave upgrade` record them")
	}
	current := all[len(all)-1].Number
	if number == 0 {
		number = current - 1
	}
	i := slices.IndexFunc(all, func(r Revision) bool { return r.Number == number })
	if i < 0 || number == current {
		var have []string
		for _, r := range all[:len(all)-1] {
			have = append(have, fmt.Sprintf("%d (%s)", r.Number, r.Version))
		}
		return nil, fmt.Errorf("revision %d: not recorded; there are: %s", number, strings.Join(have, ", "))
	}
	return c.plan(ctx, all[i].Manifest, all)
}

// plan compares a manifest with the cluster. all are the recorded revisions, nil to read them.
func (c Cluster) plan(ctx context.Context, manifest []byte, all []Revision) (*Plan, error) {
	objects, err := parse(manifest)
	if err != nil {
		return nil, err
	}
	if err := c.refuseHelm(ctx, objects); err != nil {
		return nil, err
	}
	if all == nil {
		if all, err = c.revisions(ctx); err != nil {
			return nil, err
		}
	}
	p := &Plan{To: Revision{Version: versionOf(objects), Manifest: manifest}, objects: objects}
	if len(all) > 0 {
		p.From = &all[len(all)-1]
	} else if p.From, err = c.adopt(ctx, objects); err != nil {
		return nil, err
	}
	if err := p.findPrune(); err != nil {
		return nil, err
	}
	return p, c.keepSettings(ctx, p)
}

// refuseHelm refuses a cluster whose objects belong to Helm, which would overwrite them at its next upgrade.
func (c Cluster) refuseHelm(ctx context.Context, objects []*unstructured.Unstructured) error {
	ds, err := c.live(ctx, find(objects, "DaemonSet", "wayleave"))
	if err != nil || ds == nil {
		return err
	}
	if release := ds.GetAnnotations()["meta.helm.sh/release-name"]; release != "" {
		return fmt.Errorf("%s: belongs to the Helm release %s; use helm upgrade, helm rollback and helm uninstall",
			nameOf(ds), release)
	}
	return nil
}

// findPrune finds the objects that only the version before has. Namespaces and CRDs stay: what is in them would be
// lost.
func (p *Plan) findPrune() error {
	if p.From == nil {
		return nil
	}
	before, err := parse(p.From.Manifest)
	if err != nil {
		return fmt.Errorf("revision %d: %w", p.From.Number, err)
	}
	for _, o := range before {
		if k := o.GetKind(); k == "Namespace" || k == "CustomResourceDefinition" ||
			slices.ContainsFunc(p.objects, func(x *unstructured.Unstructured) bool { return isSame(o, x) }) {
			continue
		}
		p.prune = append(p.prune, o)
	}
	return nil
}

// WriteSettings prints what becomes of the settings, a line each.
func (p *Plan) WriteSettings(w io.Writer) {
	from := "nothing"
	if p.From != nil {
		from = p.From.Version
	}
	fmt.Fprintf(w, "from %s to %s\n", from, p.To.Version)
	for _, part := range []struct {
		what  string
		lines []string
	}{
		{"stays as edited in ConfigMap wayleave", p.Settings.Kept},
		{"not known to " + p.To.Version + ", and removed from ConfigMap wayleave", p.Settings.Dropped},
		{"not known to " + p.To.Version + ", and not used while it runs", p.Settings.Ignored},
		{"changes its meaning", p.Settings.Meaning},
		{"has another default", p.Settings.Defaults},
	} {
		for _, line := range part.lines {
			fmt.Fprintf(w, "setting %s: %s\n", part.what, line)
		}
	}
}
