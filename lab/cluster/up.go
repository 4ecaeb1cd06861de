package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"wayleave.dev/internal/execfile"
	"wayleave.dev/lab/build"
	"wayleave.dev/lab/control"
	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/images"
	"wayleave.dev/lab/node"
	"wayleave.dev/lab/pki"
	"wayleave.dev/lab/place"
	"wayleave.dev/lab/process"
	"wayleave.dev/lab/progress"
)

const (
	// firstPort is the first port that is tried for the API server on the host's loopback.
	firstPort = 16443
	// RegistryPort is where the lab's registry listens, at the gateway.
	RegistryPort = 5000

	startDeadline = 2 * time.Minute
)

// Lab is the lab of one set of folders.
type Lab struct {
	Dirs     place.Dirs
	Progress *progress.Printer
	// Out receives the output of programs that run for the user.
	Out io.Writer
}

// up is a lab that is starting.
type up struct {
	*Lab
	Settings
	checkout string
	cache    *build.Cache
	programs *build.Programs
	images   []string
	plan     fabric.Plan
	port     int
	ca       *pki.Authority
	control  control.Config
	nodes    []node.Config
	upstream *upstreamParts
	kubeadm  *build.Kubeadm
	api      *api
}

// ErrInterrupted means that the user, or the system, stopped a starting lab.
var ErrInterrupted = errors.New("interrupted; nothing is left running")

// Up brings a lab up. If that fails, or the context ends, everything that was started is taken down again.
func (l *Lab) Up(ctx context.Context, settings Settings) (err error) {
	if err := settings.Check(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("lab: creating namespaces needs root")
	}
	unlock, err := lock(lockName)
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.refuseSecond(); err != nil {
		return err
	}
	u := &up{Lab: l, Settings: settings}
	if err := u.build(ctx); err != nil {
		return err
	}
	// The remains of a lab that died would be in the way.
	if err := l.down(ctx); err != nil {
		return err
	}
	defer func() {
		if ctx.Err() != nil {
			err = ErrInterrupted // other errors are consequences
		} else if err != nil && settings.Keep {
			l.Progress.Printf(`the lab is kept; "lab down" takes it down`)
			return
		}
		if err != nil {
			err = errors.Join(err, l.abandon(ctx))
		}
	}()
	if err := u.start(ctx); err != nil {
		return err
	}
	u.finish()
	return nil
}

func (l *Lab) refuseSecond() error {
	if err := l.others(); err != nil {
		return err
	}
	records, err := process.LoadAll(l.Dirs.Processes())
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.Alive() {
			return fmt.Errorf(`a lab is up already (%s runs as process %d); "lab down" takes it down`, r.Name, r.PID)
		}
	}
	return nil
}

// abandon takes down a lab that failed to start, and keeps its logs.
func (l *Lab) abandon(ctx context.Context) error {
	// The context may have ended; the lab must be taken down all the same.
	interrupted := ctx.Err() != nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	l.Progress.Printf("taking down what was started")
	if interrupted {
		return l.down(ctx)
	}
	kept := filepath.Join(l.Dirs.Cache, "failed-logs")
	if err := l.keepLogs(kept); err != nil {
		l.Progress.Printf("the logs are lost: %v", err)
	} else {
		l.Progress.Printf("the logs are kept in %s", kept)
	}
	return l.down(ctx)
}

// keepLogs copies the logs of programs and of pods.
func (l *Lab) keepLogs(to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.CopyFS(to, os.DirFS(l.Dirs.Logs())); err != nil {
		return err
	}
	pods, err := filepath.Glob(filepath.Join(l.Dirs.NodeData("*"), "pod-logs"))
	if err != nil {
		return err
	}
	for _, dir := range pods {
		if err := os.CopyFS(filepath.Join(to, filepath.Base(filepath.Dir(dir))), os.DirFS(dir)); err != nil {
			return err
		}
	}
	return nil
}

// build builds everything that the lab consists of, before anything is started.
func (u *up) build(ctx context.Context) (err error) {
	if u.checkout, err = place.Checkout(); err != nil {
		return err
	}
	if u.plan, err = fabric.NewPlan(u.Nodes, u.DualStack); err != nil {
		return err
	}
	u.cache = u.Cache()
	unlock, err := u.cache.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	// The last few are for people who inspect nodes, and for external clients.
	need := map[string]string{"runc": "runc", "nsenter": "util-linux", "mount": "mount",
		"ip": "iproute2", "nft": "nftables", "curl": "curl", "nc": "netcat-openbsd", "ping": "iputils-ping",
		"pgrep": "procps", "arping": "arping", "ndisc6": "ndisc6"}
	if u.Network == Upstream && u.ProxyMode == "iptables" {
		need["iptables"] = "iptables"
	}
	if err := u.cache.Host(ctx, need); err != nil {
		return err
	}
	if u.programs, err = u.cache.Programs(ctx, u.checkout); err != nil {
		return err
	}
	base, err := images.Base(ctx, u.cache, u.programs)
	if err != nil {
		return err
	}
	u.images = []string{base}
	if u.Bare {
		return u.buildBare(ctx)
	}
	switch u.Network {
	case Upstream:
		return u.buildUpstream(ctx)
	case Wayleave:
		return u.buildWayleave(ctx)
	}
	return nil
}

// Cache returns the cache of builds.
func (l *Lab) Cache() *build.Cache {
	return &build.Cache{Dir: l.Dirs.Cache, Progress: l.Progress}
}

// start starts everything and returns when the cluster's nodes are registered.
func (u *up) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*startDeadline, errors.New("the lab did not come up in time"))
	defer cancel()
	steps := []func(context.Context) error{u.prepare, u.startFabric, u.startControl, u.startNodes, u.awaitNodes,
		u.network}
	if u.Bare {
		steps = []func(context.Context) error{u.prepareBare, u.startFabric, u.startBare}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// prepare writes every file of the lab.
func (u *up) prepare(context.Context) error {
	if err := u.prepareFolders(); err != nil {
		return err
	}
	u.control = control.Config{Plan: u.plan, Dual: u.DualStack, Kube: u.programs.Kube,
		PKI: u.Dirs.PKI(), State: filepath.Join(u.Dirs.State, "control")}
	if err := os.Chmod(u.control.State, 0o700); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	var err error
	if u.ca, err = u.control.WriteKeys(); err != nil {
		return err
	}
	for i, machine := range u.plan.Nodes {
		config := u.node(i, machine)
		config.Server = u.control.Server()
		u.nodes = append(u.nodes, config)
	}
	if err := u.ca.Kubeconfig(u.Dirs.Kubeconfig(), fmt.Sprintf("https://127.0.0.1:%d", u.port), "admin"); err != nil {
		return err
	}
	if err := u.ca.Kubeconfig(u.Dirs.FabricKubeconfig(), u.control.Server(), "admin"); err != nil {
		return err
	}
	if u.api, err = newAPI(u.Dirs, u.port); err != nil {
		return err
	}
	return u.remember()
}

func (u *up) registry() netip.AddrPort {
	return netip.AddrPortFrom(u.plan.Gateways[0].Addr(), RegistryPort)
}

// registryDir contains links to the archives that the registry serves.
func (l *Lab) registryDir() string { return filepath.Join(l.Dirs.State, "registry") }

// self returns the copy of this program that runs in the background: the original may be rebuilt, or be a temporary
// file of "go run".
func (l *Lab) self() string { return filepath.Join(l.Dirs.State, selfName) }

const selfName = "bin/lab"

func (u *up) copySelf() error {
	program, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = execfile.Install(u.self(), program, 0o755)
	}
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// freePort finds a free port on the loopback.
func freePort() int {
	for _, address := range []string{fmt.Sprintf("127.0.0.1:%d", firstPort), "127.0.0.1:0"} {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		defer listener.Close()
		return listener.Addr().(*net.TCPAddr).Port
	}
	return firstPort // the forwarder will report the error
}

func (u *up) startFabric(context.Context) error {
	if err := fabric.Build(u.plan); err != nil {
		return err
	}
	for _, archive := range u.images {
		if err := u.serveImage(archive); err != nil {
			return err
		}
	}
	args := []string{u.self(), "internal", "services", "--registry", u.registryDir(), "--queries",
		filepath.Join(u.Dirs.Logs(), "queries.log")}
	for _, gateway := range u.plan.Gateways {
		args = append(args, gateway.Addr().String())
	}
	if _, err := process.Start(process.Program{Name: "services", Args: args, Namespace: fabric.Bridge},
		u.Dirs.Processes(), u.Dirs.Logs()); err != nil {
		return err
	}
	namespace, address := u.server()
	_, err := process.Start(process.Program{Name: "forwarder", Args: []string{u.self(), "internal", "forward",
		fmt.Sprintf("127.0.0.1:%d", u.port), namespace, address}},
		u.Dirs.Processes(), u.Dirs.Logs())
	return err
}

// serveImage makes the lab's registry serve an archive.
func (l *Lab) serveImage(archive string) error {
	link := filepath.Join(l.registryDir(), fmt.Sprintf("%d-%s", time.Now().UnixNano(), filepath.Base(archive)))
	if err := os.Symlink(archive, link); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

func (u *up) startControl(context.Context) error {
	spec := node.Spec{Hostname: "control", Services: u.control.Services(), Logs: u.Dirs.Logs()}
	return u.startMachine(u.plan.Control, spec)
}

// startMachine starts the first process of a node or of the control plane.
func (u *up) startMachine(m fabric.Machine, spec node.Spec) error {
	file := filepath.Join(u.Dirs.Node(m.Name), "init.json")
	if err := spec.Save(file); err != nil {
		return err
	}
	_, err := process.Start(process.Program{Name: m.Name, Args: []string{u.self(), "internal", "machine", file},
		Namespace: m.Namespace, Clone: node.Namespaces}, u.Dirs.Processes(), u.Dirs.Logs())
	return err
}

// startNodes starts the nodes, and loads their images while the API server
// is starting.
func (u *up) startNodes(ctx context.Context) error {
	if err := u.prepareNetwork(); err != nil {
		return err
	}
	var group errgroup.Group
	for _, config := range u.nodes {
		spec, err := config.Prepare(u.ca)
		if err != nil {
			return err
		}
		if err := u.startMachine(config.Machine, spec); err != nil {
			return err
		}
		group.Go(func() error {
			return u.importImages(ctx, config.Machine.Name, u.programs.Ctr, u.images)
		})
	}
	group.Go(func() error {
		ctx, cancel := context.WithTimeoutCause(ctx, startDeadline, errors.New("the API server did not start in time"))
		defer cancel()
		err := process.WaitFor(ctx, "the API server", 100*time.Millisecond,
			func() error { return u.api.get(ctx, "/readyz", nil) })
		if err == nil {
			u.Progress.Printf("the API server is ready")
		}
		return err
	})
	return group.Wait()
}

// awaitNodes waits until every node has an address range for its pods, and adds routes for these ranges to the control
// plane.
func (u *up) awaitNodes(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startDeadline, errors.New("nodes did not register in time"))
	defer cancel()
	families := len(u.plan.Gateways)
	var nodes map[string]apiNode
	err := process.WaitFor(ctx, "nodes with pod ranges", 100*time.Millisecond, func() (err error) {
		if nodes, err = u.api.nodes(ctx); err != nil {
			return err
		}
		for _, m := range u.plan.Nodes {
			if len(nodes[m.Name].Spec.PodCIDRs) != families {
				return fmt.Errorf("node %s: spec.podCIDRs: %d, expected %d", m.Name,
					len(nodes[m.Name].Spec.PodCIDRs), families)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	u.Progress.Printf("%d nodes have registered", len(nodes))
	for _, m := range u.plan.Nodes {
		for _, prefix := range nodes[m.Name].Spec.PodCIDRs {
			if err := fabric.Route(fabric.Control, prefix, m.Address(prefix)); err != nil {
				return err
			}
		}
	}
	if u.Network == Upstream {
		return u.connect(nodes)
	}
	return nil
}

// awaitReady waits until every node reports that it is ready.
func (u *up) awaitReady(ctx context.Context) error {
	return process.WaitFor(ctx, "all nodes to be Ready", 200*time.Millisecond, func() error {
		nodes, err := u.api.nodes(ctx)
		if err != nil {
			return err
		}
		for _, m := range u.plan.Nodes {
			if n := nodes[m.Name]; !n.ready() {
				return fmt.Errorf("node %s is not Ready: %+v", m.Name, n.Status.Conditions)
			}
		}
		return nil
	})
}

// remember stores the state of the starting lab, for other commands.
func (u *up) remember() error {
	s := state{Settings: u.Settings, Kubernetes: u.programs.KubernetesVersion, Port: u.port,
		Kubectl: u.programs.Kubectl, Ctr: u.programs.Ctr, Agnhost: u.programs.AgnhostVersion}
	return s.save(u.Dirs)
}

// finish tells the user how to use the lab.
func (u *up) finish() {
	if u.Bare {
		u.Progress.Printf("up: %d machines with containerd and kubeadm %s", u.Nodes, u.programs.KubernetesVersion)
		return
	}
	u.Progress.Printf("up: Kubernetes %s, %d nodes, network %s", u.programs.KubernetesVersion, u.Nodes, u.Network)
	fmt.Fprintf(u.Out, "export KUBECONFIG=%s\n", u.Dirs.Kubeconfig())
	if hint := kubectlHint(u.programs.Kubectl); hint != "" {
		fmt.Fprintln(u.Out, hint)
	}
}
