package cli

import (
	"github.com/spf13/cobra"

	kubesource "wayleave.dev/source/kubernetes"
)

// Cluster are the flags that choose a cluster, as those of kubectl.
type Cluster struct {
	kubesource.Access
	// Namespace is that of -n.
	Namespace string
}

// Flags adds --kubeconfig, --context and -n to a command. The default of -n and its meaning are the command's.
func (a *Cluster) Flags(c *cobra.Command, namespace, meaning string) {
	c.Flags().StringVar(&a.Kubeconfig, "kubeconfig", "",
		"the kubeconfig file; default: KUBECONFIG, in a container of Wayleave its account, else ~/.kube/config")
	c.Flags().StringVar(&a.Context, "context", "", "the context of the kubeconfig; default: its current one")
	c.Flags().StringVarP(&a.Namespace, "namespace", "n", namespace, meaning)
}
