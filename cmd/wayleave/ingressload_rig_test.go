package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"wayleave.dev/agent"
	"wayleave.dev/agent/ingress"
	"wayleave.dev/config"
	"wayleave.dev/internal/fakeapi"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/schema"
	kubesource "wayleave.dev/source/kubernetes"
)

const (
	loadNamespace = "shop"
	loadNode      = "192.0.2.1"
	loadPlain     = loadNode + ":10080"
	loadHTTPS     = loadNode + ":10443"
	endpointPort  = 8080
)

// loadRig is a node: an API server, the agent's part for Ingress, a proxy in a process of
// its own, and endpoints in processes of theirs, all in one namespace.
type loadRig struct {
	t      *testing.T
	ns     *testnet.NS
	api    *fakeapi.Server
	agent  *agent.Node
	ca     *loadCA
	binary string
	dir    string // the proxy's

	mu       sync.Mutex
	services map[string]*loadService
	// free are addresses of pods, the one that was left last at the end.
	free    []string
	started int
}

// loadService is a Service with the pods behind it. Twins are Services with the same pods.
type loadService struct {
	name  string
	pods  []*loadPod
	twins []string
}

// newLoadRig starts all but endpoints.
func newLoadRig(t *testing.T) *loadRig {
	r := &loadRig{t: t, ns: testnet.New(t, "node"), api: fakeapi.New(), services: map[string]*loadService{},
		dir: proxyDir(t)}
	r.binary, r.ca = testBinary(t, proxyDir(t)), newLoadCA(t)
	r.ns.Addr("lo", loadNode+"/32")
	for i := range 12 {
		a := fmt.Sprintf("10.244.7.%d", i+1)
		r.ns.Addr("lo", a+"/32")
		r.free = append(r.free, a)
	}
	r.api.Put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: loadNode}}}})
	r.api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: "2d5e4f1c"}})
	r.startAgent()
	startProxyIn(t, r.ns, r.binary, r.dir)
	return r
}

// startAgent runs what the agent does for Ingress: from the API to the proxies' socket.
func (r *loadRig) startAgent() {
	t := r.t
	srv := httptest.NewServer(r.api)
	t.Cleanup(srv.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: srv.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	a := &agent.Node{Name: "node1", Core: agent.NewCore(log, store,
		config.Config{Ingress: config.Ingress{Enabled: true, AccessLog: true, Drain: 5 * time.Second}}, nil)}
	a.Client = &kubesource.Client{Interface: client}
	r.agent = a
	f := ingress.New()
	f.Keeper = feed.NewKeeper("", log) // there is no other agent
	f.Keeper.Bind = func(s schema.Socket) (file *os.File, err error) {
		err = r.ns.Do(func() error { file, err = feed.OpenSocket(s); return err })
		return file, err
	}
	if err := f.Prepare(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(r.dir, "proxy.sock")})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(r.dir, "proxy.sock"), 0o666); err != nil {
		t.Fatal(err)
	}
	source := &kubesource.Source{Client: client, Store: store, NodeName: "node1", Ingresses: true, Log: log}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- agent.All(ctx, source.Run, func(ctx context.Context) error { return f.Feed(ctx, l) })
	}()
	t.Cleanup(func() {
		cancel()
		r.api.Close()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the agent ended with %v", err)
		}
		_ = store.Close()
	})
}

// loadPod is an endpoint in a process of its own.
type loadPod struct {
	name, addr string
	// leaving pods are terminating in EndpointSlices.
	leaving bool
	cmd     *exec.Cmd
	out     *bufio.Reader
	stderr  strings.Builder
}

// start starts a pod of a Service, which is in no EndpointSlice yet.
func (r *loadRig) start(service string) (*loadPod, error) {
	r.mu.Lock()
	r.started++
	p := &loadPod{name: fmt.Sprintf("%s-%d", service, r.started), addr: r.free[len(r.free)-1]}
	r.free = r.free[:len(r.free)-1]
	r.mu.Unlock()
	p.cmd = exec.Command(r.binary, "-test.run=^TestLoadEndpointChild$")
	p.cmd.Env = []string{endpointChild + "=" + service + " " + p.name + " " + fmt.Sprintf("%s:%d", p.addr,
		endpointPort), "GOMAXPROCS=2"}
	p.cmd.Stderr = &p.stderr
	_, err := p.cmd.StdinPipe() // see endWithParent
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	if err := r.ns.Do(p.cmd.Start); err != nil {
		return nil, err
	}
	if line, err := p.out.ReadString('\n'); line != "ready\n" {
		return nil, fmt.Errorf("pod %s: said %q, %w: %s", p.name, line, err, p.stderr.String())
	}
	return p, nil
}

// end tells a pod to stop as the kubelet does, and waits for that. late is how many
// answers were being sent then.
func (r *loadRig) end(p *loadPod) (late int, err error) {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	text, err := io.ReadAll(p.out)
	if werr := p.cmd.Wait(); err != nil || werr != nil {
		return 0, fmt.Errorf("pod %s ended with %w: %s %s", p.name, errors.Join(err, werr), text, p.stderr.String())
	}
	if _, err := fmt.Sscanf(string(text), "late %d", &late); err != nil {
		return 0, fmt.Errorf("pod %s said %q: %w", p.name, text, err)
	}
	return late, nil
}

// freed says that the address of a pod, which is in no EndpointSlice any more, is for the
// next one, of whatever Service.
func (r *loadRig) freed(p *loadPod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free = append(r.free, p.addr)
}

// begun is how many requests a pod has begun.
func (r *loadRig) begun(p *loadPod) (n int, err error) {
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: r.dial}}
	resp, err := c.Get(fmt.Sprintf("http://%s:%d/begun", p.addr, endpointPort))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = fmt.Fscan(resp.Body, &n)
	return n, err
}

func (r *loadRig) dial(_ context.Context, network, addr string) (net.Conn, error) {
	return r.ns.Dial(network, addr, 15*time.Second)
}

// service makes a Service with pods that are ready.
func (r *loadRig) service(name string, pods int) {
	s := &loadService{name: name}
	for range pods {
		p, err := r.start(name)
		if err != nil {
			r.t.Fatal(err)
		}
		s.pods = append(s.pods, p)
	}
	r.mu.Lock()
	r.services[name] = s
	r.mu.Unlock()
	r.twin(name, name)
}

// change changes the pods of a Service, and has the API tell of it.
func (r *loadRig) change(name string, fn func(*loadService)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.services[name]
	fn(s)
	for _, twin := range s.twins {
		r.api.Put(s.slice(twin))
	}
}

// twin makes another Service with the pods of one.
func (r *loadRig) twin(of, name string) {
	r.api.Put(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: loadNamespace, Name: name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "None", ClusterIPs: []string{"None"},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}}}})
	r.change(of, func(s *loadService) { s.twins = append(s.twins, name) })
}

// untwin takes it away.
func (r *loadRig) untwin(of, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.services[of]
	var left []string
	for _, n := range s.twins {
		if n != name {
			left = append(left, n)
		}
	}
	s.twins = left
	r.api.Delete(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: loadNamespace, Name: name}}, s.slice(name))
}

// slice is the EndpointSlice of a Service with the pods of s.
func (s *loadService) slice(name string) *discoveryv1.EndpointSlice {
	port, portName, tcp := int32(endpointPort), "http", corev1.ProtocolTCP
	out := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: loadNamespace, Name: name + "-1",
		Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port,
			Protocol: &tcp}}}
	for _, p := range s.pods {
		ready, leaving, serving := !p.leaving, p.leaving, true
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{Addresses: []string{p.addr},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &leaving}})
	}
	return out
}

// loadIngress makes an Ingress with one host. Paths are "PATH SERVICE"; those that end in $ are exact.
func loadIngress(name, host, secret string, age time.Duration, annotations map[string]string,
	paths ...string) *networkingv1.Ingress {
	class, prefix, exact := "wayleave", networkingv1.PathTypePrefix, networkingv1.PathTypeExact
	in := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: loadNamespace, Name: name,
		Annotations: map[string]string{}, CreationTimestamp: metav1.NewTime(time.Unix(1_700_000_000, 0).Add(-age))},
		Spec: networkingv1.IngressSpec{IngressClassName: &class}}
	for k, v := range annotations {
		in.Annotations["nginx.ingress.kubernetes.io/"+k] = v
	}
	rule := networkingv1.IngressRule{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{
		HTTP: &networkingv1.HTTPIngressRuleValue{}}}
	for i, p := range paths {
		path, service, _ := strings.Cut(p, " ")
		kind := &prefix
		if short, ok := strings.CutSuffix(path, "$"); ok {
			path, kind = short, &exact
		}
		port := networkingv1.ServiceBackendPort{Number: 80}
		if i%2 == 1 {
			port = networkingv1.ServiceBackendPort{Name: "http"}
		}
		rule.HTTP.Paths = append(rule.HTTP.Paths, networkingv1.HTTPIngressPath{Path: path, PathType: kind,
			Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: service,
				Port: port}}})
	}
	in.Spec.Rules = []networkingv1.IngressRule{rule}
	if secret != "" {
		in.Spec.TLS = []networkingv1.IngressTLS{{Hosts: []string{host}, SecretName: secret}}
		in.Annotations["nginx.ingress.kubernetes.io/ssl-redirect"] = "false"
	}
	return in
}

// loadCA signs certificates whose serial numbers rise.
type loadCA struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newLoadCA(t *testing.T) *loadCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "load"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &loadCA{t, key, cert, pool}
}

// secret is a Secret with a new certificate for a host.
func (c *loadCA) secret(name, host string, serial int64) (*corev1.Secret, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: host},
		DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key)
	if err != nil {
		return nil, err
	}
	priv, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: loadNamespace, Name: name},
		Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: priv})}}, nil
}
