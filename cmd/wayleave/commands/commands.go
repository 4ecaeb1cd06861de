// Package commands are the commands that people call. Each is flags, one call of another package, and output; what
// they have in common is in internal/cli.
package commands

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"wayleave.dev/cmd/wayleave/clustercommands"
	"wayleave.dev/cmd/wayleave/installcommands"
	"wayleave.dev/deploy"
	"wayleave.dev/internal/cli"
	kubesource "wayleave.dev/source/kubernetes"
)

// Root is the program with the commands for people. release is what the program installs, and says of itself. dnsServer
// is what `wayleave dns` runs when it is called without a command, and dnsSocket where its commands ask; nil and "" for
// the reference.
func Root(release deploy.Release, dnsServer func(*cobra.Command, []string) error, dnsSocket string) *cobra.Command {
	c := &cobra.Command{Use: "wayleave", Short: "Services and networking of Kubernetes in one program",
		Version: release.Version}
	c.AddCommand(installcommands.All(release, cluster())...)
	c.AddCommand(installcommands.Uninstall(release, cluster(), uninstallNode))
	c.AddCommand(clustercommands.All(release, cluster())...)
	c.AddCommand(importCommand(), versionCommand(release.Version))
	c.AddCommand(nodeCommands(dnsServer, dnsSocket)...)
	return c
}

func versionCommand(version string) *cobra.Command {
	var out cli.Output
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return out.Print(cmd.OutOrStdout(), "wayleave "+version+"\n", map[string]string{"version": version})
		},
	}
	out.Flag(c)
	return c
}

// cluster returns flags for a cluster: in a container of the agent, the node's facts say where the API server is.
func cluster() cli.Cluster {
	return cli.Cluster{Access: kubesource.Access{Host: kubesource.Host{Facts: nodeFacts}}}
}

// require has a flag that must be given.
func require(c *cobra.Command, flag string) {
	if err := c.MarkFlagRequired(flag); err != nil {
		panic(err) // the flag is not defined: every run of the program fails
	}
}

// withFile opens a file; "-" is stdin, and empty a nil reader.
func withFile(cmd *cobra.Command, file string, run func(io.Reader) error) error {
	switch file {
	case "":
		return run(nil)
	case "-":
		return run(cmd.InOrStdin())
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return run(f)
}

// textResult is a result that has no other structure than lines.
type textResult struct {
	Lines []string `json:"lines"`
}

// printLines prints text, as a list of lines unless people read it.
func printLines(cmd *cobra.Command, out *cli.Output, text string) error {
	return out.Print(cmd.OutOrStdout(), text, textResult{cli.Lines(text)})
}

// mustBe takes from minimum to maximum arguments, which what names.
func mustBe(minimum, maximum int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < minimum || len(args) > maximum {
			return fmt.Errorf("%s: found %d arguments", what, len(args))
		}
		return nil
	}
}
