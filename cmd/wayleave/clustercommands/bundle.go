package clustercommands

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/bundle"
	"wayleave.dev/check"
	"wayleave.dev/config"
	"wayleave.dev/internal/cli"
	"wayleave.dev/overview"
	"wayleave.dev/source/kubernetes/fleet"
)

// bundleResult is what support-bundle says of its archive.
type bundleResult struct {
	File string `json:"file"`
	bundle.Index
}

func bundleCommand(version string, at cli.Cluster) *cobra.Command {
	var file string
	var out cli.Output
	c := &cobra.Command{
		Use:   "support-bundle",
		Short: "Collect logs, objects and kernel state in one archive, for a bug report",
		Long: "It writes a .tar.gz with the status and the checks of the cluster, of each node the kernel's state,\n" +
			"metrics and logs, and the objects that Wayleave reads. Secrets are not read; passwords, tokens, keys\n" +
			"and values of environment variables are redacted. Look at it before you pass it on: names and\n" +
			"addresses are in it. A part that cannot be read is named in index.json, and costs no other part.\n" +
			"Each part has 4 MiB at most, all together 256 MiB and 5 minutes.\n" +
			"Exits with 0 when the archive is complete, 1 when parts are missing, 2 when there is none.",
		Example: "  wayleave support-bundle\n  wayleave support-bundle --to - | ssh host 'cat > bundle.tar.gz'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				file = "wayleave-support-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
			}
			index, err := writeBundle(cmd, at, file, version)
			if err != nil {
				return cli.NoAnswer(err)
			}
			to := cmd.OutOrStdout()
			if file == "-" {
				to = cmd.ErrOrStderr()
			}
			if err := out.Print(to, file+": "+index.Summary(), bundleResult{file, index}); err != nil {
				return cli.NoAnswer(err)
			}
			return cli.Verdict(index.Failed == 0)
		},
	}
	c.Flags().StringVar(&file, "to", "", "the archive, - for stdout; default: wayleave-support-TIME.tar.gz")
	out.Flag(c)
	at.Flags(c, system, "the namespace of Wayleave")
	return c
}

func writeBundle(cmd *cobra.Command, at cli.Cluster, file, version string) (x bundle.Index, err error) {
	ctx := cmd.Context()
	client, err := at.Client()
	if err != nil {
		return x, err
	}
	f := fleet.Fleet{Client: client, Namespace: at.Namespace}
	read, cancel := context.WithTimeout(ctx, readWithin+4*overview.AnswerWithin)
	defer cancel()
	c, err := f.Read(read)
	if err != nil {
		return x, err
	}
	parts := bundle.Parts(f, c, bundleTexts(read, f, c))
	if file == "-" {
		return bundle.Write(ctx, cli.Raw(cmd.OutOrStdout()), "wayleave-support", version, parts, bundle.DefaultLimits())
	}
	to, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return x, err
	}
	x, err = bundle.Write(ctx, to, strings.TrimSuffix(filepath.Base(file), ".tar.gz"), version, parts,
		bundle.DefaultLimits())
	if closed := to.Close(); err == nil {
		err = closed
	}
	return x, err
}

// bundleTexts are the status and the checks of the cluster.
func bundleTexts(ctx context.Context, f fleet.Fleet, c *fleet.Cluster) map[string]string {
	o := overview.Of(ctx, f, c, f.Namespace, "")
	q := checkQuestion{}
	cfg, err := q.config(c)
	if err != nil {
		cfg = config.Default()
	}
	r := check.New(check.Kubernetes(c, time.Now()), check.Nodes(c, cfg, ""), check.Others(c, cfg),
		check.Installed(c, o),
		check.Features(o), check.Probes(probes(ctx, f, o)))
	out := map[string]string{"status.txt": o.Text(), "check.txt": r.Text()}
	for name, v := range map[string]any{"status.json": o, "check.json": r, "cluster.json": c} {
		raw, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			raw = []byte(err.Error())
		}
		out[name] = string(raw)
	}
	return out
}
