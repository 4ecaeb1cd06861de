package kubernetes

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// Access chooses the cluster that a command for people talks to.
type Access struct {
	// Kubeconfig is a file, and Context one of its contexts. Empty is the default of kubectl; in a container of
	// Wayleave it is the service account, unless KUBECONFIG is set.
	Kubeconfig, Context string
	// Host finds the API server for the service account.
	Host Host
}

// IsAccount reports whether requests use the service account of this container.
func (a Access) IsAccount() bool {
	if a.Kubeconfig != "" || a.Context != "" || os.Getenv("KUBECONFIG") != "" {
		return false
	}
	_, err := os.Stat(accountToken)
	return !errors.Is(err, fs.ErrNotExist)
}

func (a Access) kubectl() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = a.Kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules,
		&clientcmd.ConfigOverrides{CurrentContext: a.Context})
}

// RESTConfig returns the configuration of a client. from names its origin.
func (a Access) RESTConfig() (c *rest.Config, from string, err error) {
	if a.IsAccount() {
		return Config("", a.Host, &Endpoints{})
	}
	rules := a.kubectl()
	if c, err = rules.ClientConfig(); err != nil {
		if clientcmd.IsEmptyConfig(err) {
			return nil, "", fmt.Errorf("no cluster: found none in %s; give --kubeconfig, set KUBECONFIG, or write "+
				"~/.kube/config", strings.Join(rules.ConfigAccess().GetLoadingPrecedence(), ", "))
		}
		return nil, "", notKubeconfig(err)
	}
	tune(c)
	return c, rules.ConfigAccess().GetDefaultFilename(), nil
}

// notKubeconfig is the error for a file that client-go cannot use.
func notKubeconfig(err error) error {
	if file, _, ok := strings.Cut(err.Error(), ": couldn't get version/kind"); ok {
		return fmt.Errorf("kubeconfig: %s: found no apiVersion and kind; a file of kind Config is allowed", file)
	}
	return fmt.Errorf("kubeconfig: %w", err)
}

// DefaultNamespace is that of the kubeconfig's context, "default" if it names none.
func (a Access) DefaultNamespace() string {
	if a.IsAccount() {
		return "default"
	}
	ns, _, err := a.kubectl().Namespace()
	if err != nil || ns == "" {
		return "default"
	}
	return ns
}

// Client makes a client for the chosen cluster. It silences the log of client-go: its errors are returned, too.
func (a Access) Client() (*Client, error) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	c, from, err := a.RESTConfig()
	if err != nil {
		return nil, err
	}
	return clientOf(c, from, &Endpoints{})
}
