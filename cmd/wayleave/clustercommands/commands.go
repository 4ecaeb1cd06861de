// Package clustercommands are the commands that ask a whole cluster, from a laptop as from a pod.
package clustercommands

import (
	"github.com/spf13/cobra"

	"wayleave.dev/deploy"
	"wayleave.dev/internal/cli"
)

// system is the namespace of the installation, unless -n names another.
const system = "kube-system"

// All returns the commands. cluster has the flags that choose a cluster.
func All(release deploy.Release, cluster cli.Cluster) []*cobra.Command {
	return append([]*cobra.Command{statusCommand(cluster), checkCommand(cluster),
		bundleCommand(release.Version, cluster),
		testCommands(release.Image, cluster)}, cli.Internal(probeServerCommand(), probePeersCommand())...)
}
