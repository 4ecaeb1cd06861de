package installcommands

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
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
		Long: "On a node, run it as root, after the DaemonSet is deleted: docs/operations.md says how to copy the\n" +
			"program to the node. It removes everything of Wayleave, and then verifies that nothing is left;\n" +
			"--verify only verifies.\n" +
			"With --cluster it deletes the workloads, waits until their pods have ended, lets a pod on each node\n" +
			"clean the node and verify it, and then deletes the other objects. If a node cannot be cleaned, the\n" +
			"command stops before that, and can be repeated. Pods lose their network. Objects that stay in the API\n" +
			"are printed.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if u.all {
				return u.ofCluster(cmd)
			}
			if err := onlyWithCluster(cmd); err != nil {
				return err
			}
			if err := sandbox.Enter(u.root); err != nil {
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

// onlyWithCluster refuses flags for a cluster: without --cluster the command would clean this machine instead.
func onlyWithCluster(cmd *cobra.Command) error {
	for _, name := range []string{"yes", "leave", "kubeconfig", "context", "namespace", "filename", "image",
		"timeout"} {
		if cmd.Flags().Changed(name) {
			return cli.NoAnswer(fmt.Errorf("--%s: is allowed with --cluster only; nothing was changed on this machine",
				name))
		}
	}
	return nil
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
	client, err := u.cluster.Client()
	if err != nil {
		return cli.NoAnswer(err)
	}
	state, err := fleet.Fleet{Client: client, Namespace: install.Namespace}.Read(ctx)
	if err != nil {
		return cli.NoAnswer(err)
	}
	nodes, err := state.LinuxNodes(u.leave)
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
	image := cmp.Or(state.AgentImage(), u.release.Image)
	if err := sandbox.Clean(ctx, client, image, nodes, progress); err != nil {
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
