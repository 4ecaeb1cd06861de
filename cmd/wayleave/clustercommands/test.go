package clustercommands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/check"
	"wayleave.dev/connectivity"
	"wayleave.dev/internal/cli"
	"wayleave.dev/source/kubernetes/fleet"
	"wayleave.dev/source/kubernetes/sandbox"
)

// connectivityTest are the flags of `test connectivity`.
type connectivityTest struct {
	connectivity.Options
	// image is that of the flag, and ofRelease that of this program.
	image, ofRelease string
	within           time.Duration
	at               cli.Cluster
}

func testCommands(image string, cluster cli.Cluster) *cobra.Command {
	return cli.Group("test", "Test a cluster's network", connectivityCommand(image, cluster))
}

func connectivityCommand(image string, cluster cli.Cluster) *cobra.Command {
	q := connectivityTest{ofRelease: image, at: cluster}
	var out cli.Output
	c := &cobra.Command{
		Use:   "connectivity",
		Short: "Test pods, Services, DNS, Ingress, path MTU and policies from pods on the nodes",
		Long: "It starts pods of Wayleave's own image on each node, in a namespace of its own, and has them " +
			"try, in each\n" +
			"family of the cluster: pods of the same and of other nodes, packets of the path's MTU, Services " +
			"of\neach " +
			"type, DNS, an Ingress, and what policies allow and deny. It then removes the namespace, also after ^C.\n" +
			"It needs no registry where the image is on the nodes, and works on clusters without Wayleave.\n" +
			"Each line that is not good says what to do.\n" +
			"Exits with 0 when nothing failed, 1 when something failed, 2 when the test could not be made.",
		Example: "  wayleave test connectivity\n  wayleave test connectivity --skip loadbalancer,ingress -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := q.run(cmd.Context())
			if err != nil {
				return cli.NoAnswer(err)
			}
			if err := out.Print(cmd.OutOrStdout(), r.Text(), r); err != nil {
				return cli.NoAnswer(err)
			}
			return r.Status()
		},
	}
	c.Flags().StringVar(&q.image, "image", "", "the image of the pods; default: that of the cluster's agents")
	c.Flags().IntVar(&q.Nodes, "nodes", 0, fmt.Sprintf("how many nodes have pods; default: all, at most %d",
		connectivity.MaxNodes))
	c.Flags().StringSliceVar(&q.Skip, "skip", nil, "parts to leave out: "+strings.Join(connectivity.Parts(), ", "))
	c.Flags().StringVar(&q.Class, "ingress-class", "wayleave", "the IngressClass of the test's Ingress")
	c.Flags().DurationVar(&q.within, "timeout", 5*time.Minute, "how long the test may take, without its clean-up")
	out.Flag(c)
	q.at.Flags(c, system, "the namespace of Wayleave, whose image is used")
	return c
}

func (q connectivityTest) run(ctx context.Context) (r check.Report, err error) {
	for _, part := range q.Skip {
		if !slices.Contains(connectivity.Parts(), part) {
			return r, fmt.Errorf("--skip: found %q; %s are allowed", part, strings.Join(connectivity.Parts(), ", "))
		}
	}
	if q.Nodes < 0 || q.Nodes > connectivity.MaxNodes {
		return r, fmt.Errorf("--nodes: found %d; 0 to %d are allowed", q.Nodes, connectivity.MaxNodes)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, q.within,
		fmt.Errorf("the test took longer than --timeout %s", q.within))
	defer cancel()
	client, err := q.at.Client()
	if err != nil {
		return r, err
	}
	nodes, err := sandbox.Nodes(ctx, client)
	if err != nil {
		return r, err
	}
	image, err := q.imageOf(ctx, fleet.Fleet{Client: client, Namespace: q.at.Namespace})
	if err != nil {
		return r, err
	}
	place, err := sandbox.Open(ctx, client, "connectivity", image)
	if err != nil {
		return r, err
	}
	r, err = connectivity.Run(ctx, place, nodes, q.Options)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return r, err
}

// imageOf is the image that the nodes have already, if Wayleave is installed.
func (q connectivityTest) imageOf(ctx context.Context, f fleet.Fleet) (string, error) {
	if q.image != "" {
		return q.image, nil
	}
	agents, err := f.Agents(ctx)
	if err != nil {
		return "", err
	}
	for _, p := range agents {
		for _, c := range p.Containers {
			if c.Name == "agent" {
				return c.Image, nil
			}
		}
	}
	return q.ofRelease, nil
}

// probeServerCommand and probePeersCommand run in the pods of a test.
func probeServerCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "probe-server",
		Short: "Answer probes (what the pods of `wayleave test connectivity` run)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := connectivity.Listen("", strconv.Itoa(connectivity.TCPPort), strconv.Itoa(connectivity.UDPPort))
			if err != nil {
				return err
			}
			return s.Serve(cmd.Context(), os.Getenv("POD_NAME"))
		},
	}
}

func probePeersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "probe-peers PROBES",
		Short: "Make probes, in JSON, and print their results (what `wayleave test connectivity` runs in its pods)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var probes []connectivity.Probe
			if err := json.Unmarshal([]byte(args[0]), &probes); err != nil {
				return fmt.Errorf("probes: %w", err)
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(connectivity.Try(cmd.Context(), probes))
		},
	}
}
