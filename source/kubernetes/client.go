package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Endpoints are the known API servers in addition to the configured one. They are tried if that one does not answer.
type Endpoints struct {
	list atomic.Pointer[[]netip.AddrPort]
}

// Set replaces the list.
func (e *Endpoints) Set(list []netip.AddrPort) { e.list.Store(&list) }

func (e *Endpoints) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 3 * time.Second, KeepAlive: 10 * time.Second}
	conn, first := d.DialContext(ctx, network, addr)
	if first == nil {
		return conn, nil
	}
	if list := e.list.Load(); list != nil {
		for _, ap := range *list {
			if conn, err := d.DialContext(ctx, network, ap.String()); err == nil {
				return conn, nil
			}
		}
	}
	return nil, first
}

// Config returns the client configuration. server is the setting; if it is empty, the kubelet's kubeconfig and then
// the environment are used. Certificates are verified against the cluster's CA, and requests use the pod's service
// account. Outside a pod the kubeconfig file of the environment variable KUBECONFIG is used completely. from names
// the origin of the address.
func Config(server string, host Host, endpoints *Endpoints) (c *rest.Config, from string, err error) {
	switch file := os.Getenv("KUBECONFIG"); {
	case file != "":
		if c, err = clientcmd.BuildConfigFromFlags(server, file); err != nil {
			return nil, "", fmt.Errorf("KUBECONFIG %s: %w", file, err)
		}
		from = file
	default:
		c = &rest.Config{BearerTokenFile: accountToken}
		c.CAFile = filepath.Join(account, "ca.crt")
		token, err := os.ReadFile(c.BearerTokenFile)
		if err != nil {
			return nil, "", fmt.Errorf("service account: %w", err)
		}
		c.BearerToken = string(token)
		if c.Host, from, err = apiServer(server, host); err != nil {
			return nil, "", err
		}
	}
	c.Dial = endpoints.dial
	tune(c)
	return c, from, nil
}

// The service account that a container is given.
const (
	account      = "/var/run/secrets/kubernetes.io/serviceaccount"
	accountToken = account + "/token"
)

// tune sets what all clients have in common.
func tune(c *rest.Config) {
	c.UserAgent = "wayleave"
	c.QPS, c.Burst = 50, 100
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
}

func apiServer(setting string, host Host) (server, from string, err error) {
	if setting != "" {
		return setting, "the setting apiServer", nil
	}
	server, from, err = host.APIServer()
	if err == nil {
		return server, from, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	name, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if name == "" {
		return "", "",
			fmt.Errorf("no API server address: the setting apiServer is empty, KUBERNETES_SERVICE_HOST too, and: %w",
				err)
	}
	return "https://" + net.JoinHostPort(name, port), "the environment", nil
}

// Client is a connection to the API server.
type Client struct {
	kubernetes.Interface
	// Dynamic is for Wayleave's own kinds.
	Dynamic dynamic.Interface
	// REST is the configuration of both.
	REST *rest.Config
	// Server is its URL; From names its origin.
	Server, From string
	// Endpoints are further API servers.
	Endpoints *Endpoints

	reviewer *reviewer
}

// NewClient makes a client, see Config.
func NewClient(server string, host Host) (*Client, error) {
	e := &Endpoints{}
	c, from, err := Config(server, host, e)
	if err != nil {
		return nil, err
	}
	return clientOf(c, from, e)
}

func clientOf(c *rest.Config, from string, e *Endpoints) (*Client, error) {
	api, err := kubernetes.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.Host, err)
	}
	own, err := dynamic.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.Host, err)
	}
	reviewer, err := newReviewer(c)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.Host, err)
	}
	return &Client{Interface: api, Dynamic: own, REST: c, Server: c.Host, From: from, Endpoints: e,
		reviewer: reviewer}, nil
}

// HTTP is a client with the same credentials, for pages that are no objects.
func (c *Client) HTTP() (*http.Client, error) {
	client, err := rest.HTTPClientFor(c.REST)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.Server, err)
	}
	return client, nil
}
