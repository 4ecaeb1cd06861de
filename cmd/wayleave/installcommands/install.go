// Package installcommands are the commands that change what is installed on a cluster.
package installcommands

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/deploy"
	"wayleave.dev/install"
	"wayleave.dev/internal/cli"
)

// installer holds the flags of install, upgrade and rollback.
type installer struct {
	cluster cli.Cluster
	out     cli.Output
	release deploy.Release
	// file is a manifest instead of the release's.
	file           string
	dryRun, noWait bool
	timeout        time.Duration
}

// planner plans what a command does.
type planner func(ctx context.Context, c install.Cluster) (*install.Plan, error)

// installResult is what the commands print for machines.
type installResult struct {
	From     string           `json:"from,omitempty"`
	To       string           `json:"to"`
	Revision int              `json:"revision,omitempty"`
	Settings install.Settings `json:"settings"`
	Diff     string           `json:"diff,omitempty"`
}

const installText = "Renders the manifest of this program's release, and applies it by the API server with the " +
	"field manager " +
	"wayleave.\nSettings that were changed in the ConfigMap wayleave stay, and the ConfigMap " +
	"wayleave-settings is never " +
	"written.\nThe manifest is recorded as a Secret wayleave-revision-N in kube-system, for `wayleave rollback`; the " +
	"last five are kept.\n"

// All returns the commands. release is what they install, cluster has the flags that choose a cluster.
func All(release deploy.Release, cluster cli.Cluster) []*cobra.Command {
	return []*cobra.Command{installCommand(release, cluster), upgradeCommand(release, cluster),
		rollbackCommand(cluster)}
}

func installCommand(release deploy.Release, cluster cli.Cluster) *cobra.Command {
	i := &installer{cluster: cluster, release: release}
	c := &cobra.Command{
		Use:   "install",
		Short: "Install Wayleave on a cluster, and wait until every node runs it",
		Long:  installText + "On a cluster that has this version already, it repairs what differs.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return i.run(cmd, func(ctx context.Context, c install.Cluster) (*install.Plan, error) {
				m, err := i.manifest(cmd)
				if err != nil {
					return nil, err
				}
				return c.PlanInstall(ctx, m)
			})
		},
	}
	i.manifestFlags(c)
	i.flags(c)
	return c
}

func upgradeCommand(release deploy.Release, cluster cli.Cluster) *cobra.Command {
	var onlyPlan bool
	i := &installer{cluster: cluster, release: release}
	c := &cobra.Command{
		Use:   "upgrade",
		Short: "Upgrade Wayleave on a cluster, and wait until every node runs the new version",
		Long: installText +
			"An upgrade that could not be rolled back is refused: one that skips a minor version, and one to an " +
			"older version.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan := func(ctx context.Context, c install.Cluster) (*install.Plan, error) {
				m, err := i.manifest(cmd)
				if err != nil {
					return nil, err
				}
				return c.PlanUpgrade(ctx, m)
			}
			if onlyPlan {
				return i.show(cmd, plan)
			}
			return i.run(cmd, plan)
		},
	}
	c.Flags().BoolVar(&onlyPlan, "plan", false, "only print what becomes of the settings")
	i.manifestFlags(c)
	i.flags(c)
	return c
}

func rollbackCommand(cluster cli.Cluster) *cobra.Command {
	number := 0
	i := &installer{cluster: cluster}
	c := &cobra.Command{
		Use:   "rollback",
		Short: "Return to an earlier version, and wait until every node runs it",
		Long: "Applies the recorded manifest of an earlier revision. Settings stay as they are in the cluster; " +
			"those that the " +
			"earlier version\ndoes not know are named. The rollback is a revision of its own.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return i.run(cmd, func(ctx context.Context, c install.Cluster) (*install.Plan, error) {
				return c.PlanRollback(ctx, number)
			})
		},
	}
	c.Flags().IntVar(&number, "to", 0, "the number of the revision; default: the one before the current")
	i.flags(c)
	return c
}

func (i *installer) manifestFlags(c *cobra.Command) {
	c.Flags().StringVar(&i.release.Image, "image", i.release.Image, "the image: NAME:TAG, or NAME:TAG@sha256:DIGEST")
	c.Flags().StringVarP(&i.file, "filename", "f", "",
		"a manifest in place of the built-in one, such as your edited copy; - for stdin")
}

func (i *installer) flags(c *cobra.Command) {
	i.cluster.Flags(c, install.Namespace, "the namespace of the installation: only "+install.Namespace)
	c.Flags().BoolVar(&i.dryRun, "dry-run", false,
		"print the changes as the API server computes them, and change nothing")
	c.Flags().BoolVar(&i.noWait, "no-wait", false, "do not wait for the rollout; objects of the version before stay")
	c.Flags().DurationVar(&i.timeout, "timeout", 10*time.Minute, "how long to wait for the rollout")
	i.out.Flag(c)
}

func (i *installer) manifest(cmd *cobra.Command) ([]byte, error) {
	in := cmd.InOrStdin()
	switch i.file {
	case "":
		return i.release.Manifest()
	case "-":
	default:
		f, err := os.Open(i.file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return io.ReadAll(io.LimitReader(in, install.MaxManifest+1))
}

func (i *installer) connect() (install.Cluster, error) {
	if i.cluster.Namespace != install.Namespace {
		return install.Cluster{}, cli.NoAnswer(
			fmt.Errorf("-n %s: only %s is allowed", i.cluster.Namespace, install.Namespace))
	}
	cfg, _, err := i.cluster.RESTConfig()
	if err != nil {
		return install.Cluster{}, cli.NoAnswer(err)
	}
	return install.New(cfg)
}

// planned reaches the cluster, and makes the plan for it.
func (i *installer) planned(ctx context.Context, plan planner) (install.Cluster, *install.Plan, error) {
	c, err := i.connect()
	if err != nil {
		return install.Cluster{}, nil, err
	}
	p, err := plan(ctx, c)
	if err != nil {
		return install.Cluster{}, nil, cli.NoAnswer(err)
	}
	return c, p, nil
}

// show prints what becomes of the settings.
func (i *installer) show(cmd *cobra.Command, plan planner) error {
	_, p, err := i.planned(cmd.Context(), plan)
	if err != nil {
		return err
	}
	return i.print(cmd, p, "")
}

// run carries a plan out, or prints its changes.
func (i *installer) run(cmd *cobra.Command, plan planner) error {
	c, p, err := i.planned(cmd.Context(), plan)
	if err != nil {
		return err
	}
	if i.dryRun {
		var diff bytes.Buffer
		if err := c.Diff(cmd.Context(), p, &diff); err != nil {
			return cli.NoAnswer(err)
		}
		return i.print(cmd, p, diff.String())
	}
	progress := cmd.ErrOrStderr()
	if err := c.Apply(cmd.Context(), p, progress); err != nil {
		return err
	}
	if !i.noWait {
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), i.timeout, errors.New("--timeout is over"))
		defer cancel()
		if err := c.Wait(ctx, p, progress); err != nil {
			return err
		}
		if err := c.Prune(cmd.Context(), p, progress); err != nil {
			return err
		}
	}
	return i.print(cmd, p, "")
}

func (i *installer) print(cmd *cobra.Command, p *install.Plan, diff string) error {
	r := installResult{To: p.To.Version, Revision: p.To.Number, Settings: p.Settings, Diff: diff}
	if p.From != nil {
		r.From = p.From.Version
	}
	var text bytes.Buffer
	p.WriteSettings(&text)
	text.WriteString(diff)
	if p.To.Number > 0 {
		fmt.Fprintf(&text, "revision %d: %s\n", p.To.Number, p.To.Version)
	}
	return i.out.Print(cmd.OutOrStdout(), text.String(), r)
}
