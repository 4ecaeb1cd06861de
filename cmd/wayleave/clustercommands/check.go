package clustercommands

import (
	"context"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/check"
	"wayleave.dev/config"
	"wayleave.dev/internal/cli"
	"wayleave.dev/overview"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/source/kubernetes/fleet"
	"wayleave.dev/source/kubernetes/sandbox"
)

// readWithin is how long the API server may take to tell of the cluster.
const readWithin = time.Minute

// checkQuestion are the flags of check.
type checkQuestion struct {
	pre, node             bool
	root, image, settings string
	// probe is the image of the pods that look at the nodes.
	probe string
	at    cli.Cluster
}

func checkCommand(cluster cli.Cluster) *cobra.Command {
	q := checkQuestion{at: cluster}
	var out cli.Output
	c := &cobra.Command{
		Use:   "check [--pre] [--node]",
		Short: "Check whether a cluster can run Wayleave, or whether an installation works",
		Long: "With --pre it checks a cluster before installation, otherwise an installation. Nothing is changed:\n" +
			"the pods of --probe-image are removed again.\n" +
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
	c.Flags().StringVar(&q.probe, "probe-image", "",
		"with --pre: start a pod of this image on each node, as root, which makes the checks of --node; it is removed")
	c.Flags().StringVar(&q.settings, "settings", "", "with --pre: the file of your settings; default: the cluster's")
	out.Flag(c)
	q.at.Flags(c, system, "the namespace of Wayleave")
	c.MarkFlagsMutuallyExclusive("node", "kubeconfig")
	c.MarkFlagsMutuallyExclusive("node", "probe-image")
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
		nodes := check.OnNodes()
		if q.probe != "" {
			if nodes, err = q.onNodes(ctx, client, c); err != nil {
				return check.Report{}, err
			}
		}
		return check.New(check.Kubernetes(c, time.Now()), check.Nodes(c, cfg, q.image), check.Others(c, cfg), nodes),
			nil
	}
	o := overview.Of(ctx, f, c, q.at.Namespace, "")
	return check.New(check.Kubernetes(c, time.Now()), check.Installed(c, o), check.Features(o),
		check.Probes(probes(ctx, f, o))), nil
}

// onNodes has each node check itself, in a pod that sees its file system and its network.
func (q checkQuestion) onNodes(ctx context.Context, client *kubesource.Client, c *fleet.Cluster) (
	check.Section, error) {
	settings := overview.Data(c)
	own := settings["settings.yaml"]
	if q.settings != "" {
		raw, err := os.ReadFile(q.settings)
		if err != nil {
			return check.Section{}, err
		}
		own = string(raw)
	} else if own == "" {
		own = settings["config.yaml"]
	}
	command := []string{"/wayleave", "check", "--pre", "--node", "--root", sandbox.Root, "-o", "json"}
	if own != "" {
		command = append(command, "--settings", sandbox.Settings)
	}
	var nodes []string
	for _, n := range c.Nodes {
		if n.OS == "linux" || n.OS == "" {
			nodes = append(nodes, n.Name)
		}
	}
	out, err := sandbox.OnNodes(ctx, client, "check", q.probe, nodes, sandbox.Access{Settings: own}, command...)
	if err != nil {
		return check.Section{}, err
	}
	answers := map[string]func() ([]byte, error){}
	for node, o := range out {
		answers[node] = func() ([]byte, error) { return o.Text, o.Err }
	}
	return check.FromNodes(answers), nil
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
