package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"wayleave.dev/internal/apiaddr"
)

// Host finds the kubelet's configuration on this node: below the root of the node's file system, or in a file that
// Discover has written.
type Host struct {
	// Root is the mount of the node's "/", for example "/host".
	Root string
	// Facts is a file of type Facts. If set, it is read instead.
	Facts string
}

// kubeconfigs are the locations of the kubelet's kubeconfig in distributions: kubeadm and kind, k3s, RKE2, k0s,
// MicroK8s.
func kubeconfigs() []string {
	return []string{
		"/etc/kubernetes/kubelet.conf",
		"/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
		"/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
		"/var/lib/k0s/kubelet.conf",
		"/var/snap/microk8s/current/credentials/kubelet.config",
	}
}

// kubeletFlags returns the arguments of the running kubelet, nil if none is found. Pods can name their processes
// freely, so only processes of root outside of any container's PID namespace count.
func (h Host) kubeletFlags() []string {
	dirs, err := filepath.Glob(filepath.Join(h.Root, "proc/[0-9]*"))
	if err != nil {
		return nil
	}
	for _, dir := range dirs {
		raw, err := readSome(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // it has exited
		}
		args := strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
		// Either the kubelet, or a binary with several commands: "hyperkube kubelet".
		if filepath.Base(args[0]) != "kubelet" {
			if len(args) < 2 || args[1] != "kubelet" {
				continue
			}
			args = args[1:]
		}
		if status, err := readSome(filepath.Join(dir, "status")); err == nil && isOfNode(string(status)) {
			return args[1:]
		}
	}
	return nil
}

// isOfNode reports whether the process of that /proc/PID/status runs as root outside of any container's PID
// namespace: NSpid then has one number, that of the mounted /proc (proc_pid_status(5)).
func isOfNode(status string) bool {
	root, ofNode := false, false
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		switch fields := strings.Fields(value); key {
		case "Uid":
			root = len(fields) == 4 && !slices.ContainsFunc(fields, func(s string) bool { return s != "0" })
		case "NSpid":
			ofNode = len(fields) == 1
		}
	}
	return root && ofNode
}

// maxFile bounds a file of the node.
const maxFile = 1 << 20

func readSome(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(raw) > maxFile {
		err = fmt.Errorf("%s: more than %d bytes", name, maxFile)
	}
	return raw, err
}

// flag returns the value of --name=value or --name value.
func flag(args []string, name string) string {
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, "--"+name+"="); ok {
			return v
		}
		if a == "--"+name && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// APIServer returns the URL of the API server that the node's kubelet uses, and the file that contains it. The error
// is fs.ErrNotExist if no file was found.
func (h Host) APIServer() (server, from string, err error) {
	if h.Facts != "" {
		return h.serverOfFacts()
	}
	candidates := kubeconfigs()
	if f := flag(h.kubeletFlags(), "kubeconfig"); f != "" {
		candidates = append([]string{f}, candidates...)
	}
	for _, file := range candidates {
		raw, err := readSome(filepath.Join(h.Root, file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", fmt.Errorf("kubelet's kubeconfig: %w", err)
		}
		c, err := clientcmd.Load(raw)
		if err != nil {
			return "", "", fmt.Errorf("kubelet's kubeconfig %s: %w", file, err)
		}
		ctx, ok := c.Contexts[c.CurrentContext]
		if !ok {
			return "", "", fmt.Errorf("kubelet's kubeconfig %s: current-context: %q is not among contexts", file,
				c.CurrentContext)
		}
		cluster, ok := c.Clusters[ctx.Cluster]
		if !ok || cluster.Server == "" {
			return "", "", fmt.Errorf("kubelet's kubeconfig %s: clusters: %q has no server", file, ctx.Cluster)
		}
		return cluster.Server, file, nil
	}
	return "", "", fmt.Errorf("kubelet's kubeconfig in %s: %w", strings.Join(candidates, ", "), fs.ErrNotExist)
}

// ClusterDNS returns the addresses and the domain that the kubelet gives to pods, from its command line and
// configuration file; empty if they are not set.
func (h Host) ClusterDNS() (addrs []netip.Addr, domain string, err error) {
	if h.Facts != "" {
		return h.dnsOfFacts()
	}
	args := h.kubeletFlags()
	texts, domain := strings.FieldsFunc(flag(args, "cluster-dns"), func(r rune) bool { return r == ',' }),
		flag(args, "cluster-domain")
	file := flag(args, "config")
	if file == "" {
		file = "/var/lib/kubelet/config.yaml"
	}
	raw, err := readSome(filepath.Join(h.Root, file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", fmt.Errorf("kubelet's configuration: %w", err)
	}
	var c struct {
		ClusterDNS    []string `json:"clusterDNS"`
		ClusterDomain string   `json:"clusterDomain"`
	}
	if err := yaml.Unmarshal(raw, &c); err != nil {
		return nil, "", fmt.Errorf("kubelet's configuration %s: %w", file, err)
	}
	if len(texts) == 0 {
		texts = c.ClusterDNS
	}
	if domain == "" {
		domain = c.ClusterDomain
	}
	for _, s := range texts {
		a, err := apiaddr.ParseAddr(s)
		if err != nil {
			return nil, "", fmt.Errorf("kubelet's configuration %s: clusterDNS: %w", file, err)
		}
		addrs = append(addrs, a)
	}
	return addrs, domain, nil
}

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
	const account = "/var/run/secrets/kubernetes.io/serviceaccount"
	switch file := os.Getenv("KUBECONFIG"); {
	case file != "":
		if c, err = clientcmd.BuildConfigFromFlags(server, file); err != nil {
			return nil, "", fmt.Errorf("KUBECONFIG %s: %w", file, err)
		}
		from = file
	default:
		c = &rest.Config{BearerTokenFile: filepath.Join(account, "token")}
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
	c.UserAgent = "wayleave"
	c.QPS, c.Burst = 50, 100
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return c, from, nil
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
	return &Client{Interface: api, Dynamic: own, Server: c.Host, From: from, Endpoints: e, reviewer: reviewer}, nil
}
