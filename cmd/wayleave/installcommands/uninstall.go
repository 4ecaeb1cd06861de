package installcommands

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/deploy"
	"wayleave.dev/install"
	"wayleave.dev/internal/cli"
	"wayleave.dev/source/kubernetes/fleet"
	"wayleave.dev/source/kubernetes/sandbox"
)

// OnNode removes Wayleave from the node that the program runs on, or only looks whether anything is left.
type OnNode func(ctx context.Context, onlyVerify bool) error

// uninstaller holds the flags of uninstall.
type uninstaller struct {
	installer
	node                  OnNode
	onlyVerify, all, sure bool
	leave                 []string
	root                  string
}

// removed is what uninstall prints for machines.
type removed struct {
	Clean bool `json:"clean"`
	// Objects are deleted, or are to be; Nodes are cleaned, and Kept stays.
	Objects []string `json:"objects,omitempty"`
	Nodes   []string `json:"nodes,omitempty"`
	Kept    []string `json:"kept,omitempty"`
}

// Uninstall returns the command for a node and for a cluster.
func Uninstall(release deploy.Release, cluster cli.Cluster, node OnNode) *cobra.Command {
	u := &uninstaller{installer: installer{cluster: cluster, release: release}, node: node}
	c := &cobra.Command{
		Use:   "uninstall [--verify | --cluster]",
		Short: "Remove Wayleave from this node, or from a whole cluster",
		Long: "On a node, run it as root, after the DaemonSet is deleted: docs/operations.md says how to copy the program\n" +
			"to the node. It removes everything of Wayleave, and then verifies that nothing is left; --verify only\n" +
			"verifies.\n" +
			"With --cluster it deletes the workloads, waits until their pods have ended, lets a pod on each node clean\n" +
			"the node and verify it, and then deletes the other objects. If a node cannot be cleaned, the command stops\n" +
			"before that, and can be repeated. Pods lose their network. Objects that stay in the API are printed.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if u.all {
				return u.ofCluster(cmd)
			}
			if err := enter(u.root); err != nil {
				return err
			}
			if err := u.node(cmd.Context(), u.onlyVerify); err != nil {
				return err
			}
			return u.out.Print(cmd.OutOrStdout(), "nothing of Wayleave is left on this node\n", removed{Clean: true})
		},
	}
	c.Flags().BoolVar(&u.onlyVerify, "verify", false, "change nothing; fail when something of Wayleave is on this node")
	c.Flags().StringVar(&u.root, "root", "/", "where the node's file system is mounted")
	c.Flags().BoolVar(&u.all, "cluster", false, "uninstall from all nodes and from the API; needs --yes")
	c.Flags().BoolVar(&u.sure, "yes", false, "with --cluster: do it; without, it prints what it would do")
	c.Flags().StringSliceVar(&u.leave, "leave", nil,
		"with --cluster: nodes that are not cleaned, such as those that are down")
	c.Flags().DurationVar(&u.timeout, "timeout", 10*time.Minute, "with --cluster: how long it may take")
	u.manifestFlags(c)
	u.out.Flag(c)
	u.cluster.Flags(c, install.Namespace, "with --cluster: the namespace of the installation, only "+install.Namespace)
	c.MarkFlagsMutuallyExclusive("cluster", "verify")
	c.MarkFlagsMutuallyExclusive("cluster", "root")
	return c
}

func (u *uninstaller) ofCluster(cmd *cobra.Command) error {
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), u.timeout, errors.New("--timeout is over"))
	defer cancel()
	c, err := u.connect()
	if err != nil {
		return err
	}
	if u.file == "" {
		u.release.Version = deploy.DevVersion // objects' names have no version; that of this build may be no release's
	}
	manifest, err := u.manifest(cmd)
	if err != nil {
		return cli.NoAnswer(err)
	}
	r, err := c.PlanUninstall(ctx, manifest)
	if err != nil {
		return cli.NoAnswer(err)
	}
	nodes, image, err := u.nodes(ctx)
	if err != nil {
		return cli.NoAnswer(err)
	}
	say := removed{Objects: r.Objects(), Nodes: nodes, Kept: r.Kept}
	if !u.sure {
		return u.out.Print(cmd.OutOrStdout(), "nothing was changed; --yes does this:\n"+
			say.text("delete", "clean"), say)
	}
	progress := cmd.ErrOrStderr()
	if err := c.RemoveWorkloads(ctx, r, progress); err != nil {
		return err
	}
	if err := u.clean(ctx, nodes, image, progress); err != nil {
		return fmt.Errorf("%w; mend that and run it again, or --leave the node", err)
	}
	if err := c.RemoveRest(ctx, r, progress); err != nil {
		return err
	}
	say.Clean = true
	return u.out.Print(cmd.OutOrStdout(), say.text("deleted", "cleaned"), say)
}

func (r removed) text(deleted, cleaned string) string {
	var b bytes.Buffer
	for _, part := range []struct {
		what string
		list []string
	}{{cleaned + " node", r.Nodes}, {deleted, r.Objects}, {"stays:", r.Kept}} {
		for _, line := range part.list {
			fmt.Fprintf(&b, "%s %s\n", part.what, line)
		}
	}
	return b.String()
}

// nodes are those to clean, and the image that they have. One that is down ends the cleaning, unless --leave names it.
func (u *uninstaller) nodes(ctx context.Context) (nodes []string, image string, err error) {
	client, err := u.cluster.Client()
	if err != nil {
		return nil, "", err
	}
	f := fleet.Fleet{Client: client, Namespace: install.Namespace}
	c, err := f.Read(ctx)
	if err != nil {
		return nil, "", err
	}
	if problem := c.Errors["nodes"]; problem != "" {
		return nil, "", errors.New("nodes: " + problem)
	}
	for _, n := range c.Nodes {
		if slices.Contains(u.leave, n.Name) || n.OS != "" && n.OS != "linux" {
			continue
		}
		nodes = append(nodes, n.Name)
	}
	image = u.release.Image
	for _, p := range c.Agents {
		for _, k := range p.Containers {
			if k.Name == "agent" {
				image = k.Image
			}
		}
	}
	return nodes, image, nil
}

// clean has each node clean itself.
func (u *uninstaller) clean(ctx context.Context, nodes []string, image string, progress io.Writer) error {
	client, err := u.cluster.Client()
	if err != nil {
		return err
	}
	out, err := sandbox.OnNodes(ctx, client, "uninstall", image, nodes, sandbox.Access{Writable: true}, "/wayleave",
		"uninstall", "--root", sandbox.Root)
	if err != nil {
		return err
	}
	var failed []string
	for _, node := range slices.Sorted(maps.Keys(out)) {
		switch o := out[node]; {
		case o.Err != nil:
			failed = append(failed, node+": "+o.Err.Error())
		case o.Failed:
			failed = append(failed, node+": "+strings.TrimSpace(string(o.Text)))
		default:
			fmt.Fprintf(progress, "cleaned node %s\n", node)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("nodes that are not clean: %s", strings.Join(failed, "; "))
	}
	return nil
}
