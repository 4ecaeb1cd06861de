//go:build linux

package commands

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/agent"
	"wayleave.dev/check"
	"wayleave.dev/config"
	"wayleave.dev/internal/cli"
	"wayleave.dev/overview"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/source/kubernetes/fleet"
)

// readWithin is how long the API server may take to tell of the cluster.
const readWithin = time.Minute

// system is the namespace of the installation, unless -n names another.
const system = "kube-system"

// checkQuestion are the flags of check.
type checkQuestion struct {
	pre, node             bool
	root, image, settings string
	at                    cli.Cluster
}

func checkCommand() *cobra.Command {
	q := checkQuestion{at: cluster()}
	var out cli.Output
	c := &cobra.Command{
		Use:   "check [--pre] [--node]",
		Short: "Say whether a cluster can run Wayleave, or whether Wayleave works",
		Long: "With --pre it checks a cluster before installation, otherwise an installation. Nothing is changed.\n" +
			"With --node it checks the node that it runs on, as root: kernel, modules, sysctls, ports, kubelet,\n" +
			"other networks, firewalls, clock. Without, it asks the API server, and the agents of all nodes.\n" +
			"Each line that is not good has the command that mends it.\n" +
			"Exits with 0 when nothing failed, 1 when a check failed, 2 when one could not be made.",
		Example: "  wayleave check --pre            # from a laptop, before the installation\n" +
			"  wayleave check --pre --node     # on a node, as root\n" +
			"  wayleave check                  # after the installation",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := q.answer(cmd.Context())
			if err != nil {
				return cli.NoAnswer(err)
			}
			if err := out.Print(cmd.OutOrStdout(), r.Text(), r); err != nil {
				return cli.NoAnswer(err)
			}
			return r.Status()
		},
	}
	c.Flags().BoolVar(&q.pre, "pre", false, "check before the installation")
	c.Flags().BoolVar(&q.node, "node", false, "check this node, not the cluster; needs root")
	c.Flags().StringVar(&q.root, "root", "/", "with --node: where the node's file system is mounted")
	c.Flags().StringVar(&q.image, "image", "wayleave.dev/wayleave:dev", "with --pre: the image to be installed")
	c.Flags().StringVar(&q.settings, "settings", "", "with --pre: the file of your settings; default: the cluster's")
	out.Flag(c)
	q.at.Flags(c, system, "the namespace of Wayleave")
	c.MarkFlagsMutuallyExclusive("node", "kubeconfig")
	c.MarkFlagsMutuallyExclusive("node", "context")
	return c
}

func (q checkQuestion) answer(ctx context.Context) (check.Report, error) {
	if q.node {
		return q.ofNode(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, readWithin+4*overview.AnswerWithin)
	defer cancel()
	client, err := q.at.Client()
	if err != nil {
		return check.Report{}, err
	}
	f := fleet.Fleet{Client: client, Namespace: q.at.Namespace}
	c, err := f.Read(ctx)
	if err != nil {
		return check.Report{}, err
	}
	cfg, err := q.config(c)
	if err != nil {
		return check.Report{}, err
	}
	if q.pre {
		r := check.New(check.Kubernetes(c, time.Now()), check.Nodes(c, cfg, q.image), check.Others(c, cfg),
			check.OnNodes())
		return r, nil
	}
	o := overview.Of(ctx, f, c, q.at.Namespace, "")
	return check.New(check.Kubernetes(c, time.Now()), check.Installed(c, o), check.Features(o),
		check.Probes(probes(ctx, f, o))), nil
}

func (q checkQuestion) ofNode(ctx context.Context) (check.Report, error) {
	if os.Geteuid() != 0 {
		return check.Report{}, errors.New("--node needs root: run it by sudo")
	}
	cfg, err := q.config(nil)
	if err != nil {
		return check.Report{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	return check.New(check.Host("", check.ReadHost(ctx, check.Place{Root: q.root}), cfg)), nil
}

// config are the settings that are to be, or that the cluster has, or defaults.
func (q checkQuestion) config(c *fleet.Cluster) (config.Config, error) {
	if q.settings != "" {
		return config.Read(q.settings)
	}
	if c == nil || len(c.Settings) == 0 {
		return config.Default(), nil
	}
	cfg, err := config.ParseData(overview.Data(c))
	if err != nil {
		return config.Default(), nil //nolint:nilerr // the line about settings says so
	}
	return cfg, nil
}

// probes has each node try what pods do, and returns the answers.
func probes(ctx context.Context, f fleet.Fleet, o overview.Overview) map[string]func() ([]byte, error) {
	const maxProbe = 64 << 10
	var mu sync.Mutex
	out := map[string]func() ([]byte, error){}
	var work []func()
	for _, n := range o.Nodes {
		if n.Report == nil || slices.Contains(n.Report.Off, "dns") {
			continue
		}
		work = append(work, func() {
			ctx, cancel := context.WithTimeout(ctx, 2*overview.AnswerWithin)
			defer cancel()
			raw, err := f.Exec(ctx, n.Pod, "agent", maxProbe, "/wayleave", "probe")
			mu.Lock()
			defer mu.Unlock()
			out[n.Name] = func() ([]byte, error) { return raw, err }
		})
	}
	overview.InParallel(work)
	return maps.Clone(out)
}

// probeCommand runs in the container of the agent.
func probeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "probe",
		Short:  "Try from this node what pods do (what `wayleave check` runs in the agent's container)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			servers, domain, err := kubesource.Host{Facts: agent.NodeFacts}.ClusterDNS()
			if err != nil {
				return err
			}
			servers, _ = agent.SplitDNS(servers)
			raw, err := json.Marshal(check.Try(cmd.Context(), servers, domain))
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(append(raw, '\n'))
			return err
		},
	}
}
