// Package control renders a Kubernetes control plane: etcd, API server, controller manager and scheduler, with
// kubeadm's flags as far as they matter to a network.
package control

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/pki"
	"wayleave.dev/lab/process"
)

// Port is where the API server listens, on the fabric.
const Port = 6443

// Config describes a control plane.
type Config struct {
	Plan  fabric.Plan
	Dual  bool
	Kube  string // the multi-call program
	PKI   string // folder of keys and certificates
	State string // folder for kubeconfigs and etcd's data
}

// Server is the API server's URL on the fabric.
func (c Config) Server() string {
	return "https://" + netip.AddrPortFrom(c.Plan.Control.V4(), Port).String()
}

// WriteKeys creates all keys and certificates of the components, and the kubeconfigs of the control plane. The
// authority can issue more.
func (c Config) WriteKeys() (*pki.Authority, error) {
	ca, err := pki.NewAuthority(c.PKI, "ca")
	if err != nil {
		return nil, err
	}
	proxyCA, err := pki.NewAuthority(c.PKI, "front-proxy-ca")
	if err != nil {
		return nil, err
	}
	if err := proxyCA.Issue(pki.Request{Name: "front-proxy-client", CommonName: "front-proxy-client"}); err != nil {
		return nil, err
	}
	if _, err := pki.WriteKey(filepath.Join(c.PKI, "sa.key")); err != nil {
		return nil, err
	}
	for _, request := range c.requests() {
		if err := ca.Issue(request); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"controller-manager", "scheduler"} {
		if err := ca.Kubeconfig(filepath.Join(c.State, name+".conf"), c.Server(), name); err != nil {
			return nil, err
		}
	}
	return ca, nil
}

func (c Config) requests() []pki.Request {
	return []pki.Request{
		{Name: "apiserver", CommonName: "kube-apiserver",
			DNS: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc",
				"kubernetes.default.svc.cluster.local", "localhost", "control"},
			Addresses: c.serving()},
		{Name: "apiserver-kubelet-client", CommonName: "kube-apiserver-kubelet-client",
			Organizations: []string{"system:masters"}},
		{Name: "admin", CommonName: "kubernetes-admin", Organizations: []string{"system:masters"}},
		{Name: "controller-manager", CommonName: "system:kube-controller-manager"},
		{Name: "scheduler", CommonName: "system:kube-scheduler"},
	}
}

// serving returns every address by which a client may reach the API server: on the fabric, on the host's loopback, and
// as Service "kubernetes".
func (c Config) serving() []netip.Addr {
	all := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), fabric.ServicesV4.Addr().Next()}
	if c.Dual {
		all = append(all, fabric.ServicesV6.Addr().Next())
	}
	for _, prefix := range c.Plan.Control.Addresses {
		all = append(all, prefix.Addr())
	}
	return all
}

// ranges joins the ranges of the lab's families, IPv4 first.
func (c Config) ranges(v4, v6 netip.Prefix) string {
	if c.Dual {
		return v4.String() + "," + v6.String()
	}
	return v4.String()
}

// Services returns the programs of the control plane, in the order of their start.
func (c Config) Services() []process.Service {
	return []process.Service{
		c.service("etcd",
			"--data-dir="+filepath.Join(c.State, "etcd"), "--name=lab",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=lab=http://127.0.0.1:2380",
			"--unsafe-no-fsync", "--log-level=warn"),
		c.service("kube-apiserver", c.apiServer()...),
		c.service("kube-controller-manager", c.controllerManager()...),
		c.service("kube-scheduler",
			"--kubeconfig="+filepath.Join(c.State, "scheduler.conf"), "--bind-address=127.0.0.1",
			"--leader-elect=false"),
	}
}

func (c Config) service(name string, flags ...string) process.Service {
	return process.Service{Name: name, Program: c.Kube, Args: append([]string{name}, flags...)}
}

func (c Config) apiServer() []string {
	in := func(name string) string { return filepath.Join(c.PKI, name) }
	return []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address=" + c.Plan.Control.V4().String(),
		fmt.Sprintf("--secure-port=%d", Port),
		"--service-cluster-ip-range=" + c.ranges(fabric.ServicesV4, fabric.ServicesV6),
		"--tls-cert-file=" + in("apiserver.crt"), "--tls-private-key-file=" + in("apiserver.key"),
		"--client-ca-file=" + in("ca.crt"),
		"--kubelet-certificate-authority=" + in("ca.crt"),
		"--kubelet-client-certificate=" + in("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + in("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + in("sa.key"), "--service-account-signing-key-file=" + in("sa.key"),
		"--proxy-client-cert-file=" + in("front-proxy-client.crt"), "--proxy-client-key-file=" +
			in("front-proxy-client.key"),
		"--requestheader-client-ca-file=" + in("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		// No service proxy runs beside the API server: it calls the pods behind a Service directly.
		"--enable-aggregator-routing=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true", "--profiling=false",
	}
}

func (c Config) controllerManager() []string {
	in := func(name string) string { return filepath.Join(c.PKI, name) }
	conf := filepath.Join(c.State, "controller-manager.conf")
	flags := []string{
		"--kubeconfig=" + conf, "--authentication-kubeconfig=" + conf, "--authorization-kubeconfig=" + conf,
		"--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials=true",
		"--allocate-node-cidrs=true",
		"--cluster-cidr=" + c.ranges(fabric.PodsV4, fabric.PodsV6),
		"--service-cluster-ip-range=" + c.ranges(fabric.ServicesV4, fabric.ServicesV6),
		"--node-cidr-mask-size-ipv4=24",
		"--root-ca-file=" + in("ca.crt"), "--client-ca-file=" + in("ca.crt"),
		"--requestheader-client-ca-file=" + in("front-proxy-ca.crt"),
		"--cluster-signing-cert-file=" + in("ca.crt"), "--cluster-signing-key-file=" + in("ca.key"),
		"--service-account-private-key-file=" + in("sa.key"),
		// The default is a folder of the host, which would be created.
		"--flex-volume-plugin-dir=" + filepath.Join(c.State, "volume-plugins"),
	}
	if c.Dual {
		flags = append(flags, "--node-cidr-mask-size-ipv6=64")
	}
	return flags
}
