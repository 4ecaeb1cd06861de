package build

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// Versions of programs that are built from modules of their own. Kubernetes' version is in cmd/kube/go.mod.
const (
	ContainerdVersion = "v2.2.1"
	CoreDNSVersion    = "v1.14.3"
	PluginsVersion    = "v1.9.1"
	kubernetesModule  = "k8s.io/kubernetes"
)

// Programs are the programs of a lab, by absolute path.
type Programs struct {
	// Kube contains every Kubernetes component and etcd: call it with the component's name as argv[0] or as the first
	// argument.
	Kube, Kubectl              string
	KubernetesVersion          string // such as v1.36.3
	Containerd, Shim, Ctr      string
	Agnhost, PorterCrt, Porter string // Porter is the key of PorterCrt
	AgnhostVersion             string // the tag that the tests use
	Pause                      string
	// regression-issue-74839, which sends packets that connection tracking considers invalid
	InvalidPackets string
}

// CNIPlugins are the reference plugins, by absolute path of their folder.
type CNIPlugins struct{ Dir string }

// static is the environment of every Go build of the lab.
func static() []string { return []string{"CGO_ENABLED=0", "GOFLAGS=-buildvcs=false"} }

// Programs builds the programs that every lab needs.
func (c *Cache) Programs(ctx context.Context, checkout string) (*Programs, error) {
	kube, err := c.kubeModule(ctx, checkout)
	if err != nil {
		return nil, err
	}
	p := &Programs{KubernetesVersion: kube.version}
	steps := []struct {
		name string
		set  func(dir string)
		make func(dir string) error
	}{
		{"kube", func(d string) { p.Kube = filepath.Join(d, "kube") },
			func(d string) error {
				return kube.build(ctx, filepath.Join(d, "kube"), ".")
			}},
		{"kubectl", func(d string) { p.Kubectl = filepath.Join(d, "kubectl") },
			func(d string) error {
				return kube.build(ctx, filepath.Join(d, "kubectl"), kubernetesModule+"/cmd/kubectl")
			}},
		{"agnhost", func(d string) {
			p.Agnhost, p.PorterCrt, p.Porter = filepath.Join(d, "agnhost"), filepath.Join(d, "localhost.crt"),
				filepath.Join(d, "localhost.key")
		}, func(d string) error { return kube.agnhost(ctx, d) }},
		{"regression-issue-74839", func(d string) { p.InvalidPackets = filepath.Join(d, "regression-issue-74839") },
			func(d string) error {
				return kube.build(ctx, filepath.Join(d, "regression-issue-74839"), kubernetesModule+
					"/test/images/regression-issue-74839")
			}},
	}
	for _, step := range steps {
		dir, err := c.Make(step.name, step.name+" of Kubernetes "+kube.version, kube.inputs, step.make)
		if err != nil {
			return nil, err
		}
		step.set(dir)
	}
	if err := c.containerd(ctx, p); err != nil {
		return nil, err
	}
	version, err := os.ReadFile(filepath.Join(filepath.Dir(p.Agnhost), "VERSION"))
	if err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	p.AgnhostVersion = strings.TrimSpace(string(version))
	return p, c.pause(ctx, checkout, p)
}

func (c *Cache) containerd(ctx context.Context, p *Programs) error {
	const module = "github.com/containerd/containerd/v2"
	dir, err := c.install(ctx, "containerd", module, ContainerdVersion, "cmd/containerd",
		"cmd/containerd-shim-runc-v2", "cmd/ctr")
	if err != nil {
		return err
	}
	p.Containerd = filepath.Join(dir, "containerd")
	p.Shim = filepath.Join(dir, "containerd-shim-runc-v2")
	p.Ctr = filepath.Join(dir, "ctr")
	return nil
}

func (c *Cache) pause(ctx context.Context, checkout string, p *Programs) error {
	folder := filepath.Join(checkout, "lab", "cmd", "pause")
	inputs, err := contents(folder, "main.go")
	if err != nil {
		return err
	}
	dir, err := c.Make("pause", "pause", append(inputs, goVersion(ctx)), func(dir string) error {
		return c.run(ctx, folder, static(), "go", "build", "-ldflags=-s -w", "-o",
			filepath.Join(dir, "pause"), "main.go")
	})
	p.Pause = filepath.Join(dir, "pause")
	return err
}

// CNIPlugins builds the reference plugins named, such as "main/bridge".
func (c *Cache) CNIPlugins(ctx context.Context, plugins ...string) (*CNIPlugins, error) {
	var packages []string
	for _, plugin := range plugins {
		packages = append(packages, "plugins/"+plugin)
	}
	dir, err := c.install(ctx, "cni-plugins", "github.com/containernetworking/plugins", PluginsVersion, packages...)
	if err != nil {
		return nil, err
	}
	return &CNIPlugins{Dir: dir}, nil
}

// CoreDNS builds CoreDNS and returns its path.
func (c *Cache) CoreDNS(ctx context.Context) (string, error) {
	dir, err := c.install(ctx, "coredns", "github.com/coredns/coredns", CoreDNSVersion, ".")
	return filepath.Join(dir, "coredns"), err
}

// install builds packages of a module with the versions that the module requires.
func (c *Cache) install(ctx context.Context, name, module, version string, packages ...string) (string, error) {
	inputs := append([]string{module, version, goVersion(ctx)}, packages...)
	return c.Make(name, name+" "+version, inputs, func(dir string) error {
		args := []string{"install", "-ldflags=-s -w"}
		for _, p := range packages {
			args = append(args, path.Join(module, p)+"@"+version)
		}
		return c.run(ctx, dir, append(static(), "GOBIN="+dir), "go", args...)
	})
}

// kubeModule is the module cmd/kube, which pins the versions of everything of Kubernetes.
type kubeModule struct {
	cache   *Cache
	dir     string
	version string
	inputs  []string
}

func (c *Cache) kubeModule(ctx context.Context, checkout string) (*kubeModule, error) {
	dir := filepath.Join(checkout, "lab", "cmd", "kube")
	inputs, err := contents(dir, "go.mod", "go.sum", "main.go")
	if err != nil {
		return nil, err
	}
	version, err := requirement(inputs[0], kubernetesModule)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, "go.mod"), err)
	}
	return &kubeModule{cache: c, dir: dir, version: version, inputs: append(inputs, goVersion(ctx))}, nil
}

// build builds a package with the version of Kubernetes set, as releases do: clients and feature gates depend on it.
func (k *kubeModule) build(ctx context.Context, to, pkg string) error {
	return k.cache.run(ctx, k.dir, static(), "go", "build", "-ldflags="+k.ldflags(), "-o", to, pkg)
}

func (k *kubeModule) ldflags() string {
	parts := strings.SplitN(strings.TrimPrefix(k.version, "v"), ".", 3)
	flags := "-s -w"
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags += fmt.Sprintf(
			" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s -X %[1]s.gitTreeState=clean",
			pkg, k.version, parts[0], parts[1])
	}
	return flags
}

func (k *kubeModule) agnhost(ctx context.Context, dir string) error {
	const pkg = kubernetesModule + "/test/images/agnhost"
	if err := k.build(ctx, filepath.Join(dir, "agnhost"), pkg); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", pkg)
	cmd.Dir = k.dir
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go list %s: %w", pkg, err)
	}
	for _, file := range []string{"porter/localhost.crt", "porter/localhost.key", "VERSION"} {
		content, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Tests are Kubernetes' end-to-end tests.
type Tests struct{ E2E, Ginkgo string }

// Tests builds Kubernetes' end-to-end tests and the program that runs them in
// parallel.
func (c *Cache) Tests(ctx context.Context, checkout string) (*Tests, error) {
	kube, err := c.kubeModule(ctx, checkout)
	if err != nil {
		return nil, err
	}
	dir, err := c.Make("e2e", "the e2e tests of Kubernetes "+kube.version, kube.inputs, func(dir string) error {
		if err := kube.build(ctx, filepath.Join(dir, "ginkgo"), "github.com/onsi/ginkgo/v2/ginkgo"); err != nil {
			return err
		}
		return c.run(ctx, kube.dir, static(), "go", "test", "-c", "-ldflags="+kube.ldflags(),
			"-o", filepath.Join(dir, "e2e.test"), kubernetesModule+"/test/e2e")
	})
	return &Tests{E2E: filepath.Join(dir, "e2e.test"), Ginkgo: filepath.Join(dir, "ginkgo")}, err
}

// requirement finds the version of a module in the text of a go.mod.
func requirement(gomod, module string) (string, error) {
	for line := range strings.Lines(gomod) {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(fields) >= 2 && fields[0] == module && strings.HasPrefix(fields[1], "v") {
			return fields[1], nil
		}
	}
	return "", fmt.Errorf("no version of %s", module)
}

func contents(dir string, names ...string) ([]string, error) {
	var all []string
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("build: %w", err)
		}
		all = append(all, string(content))
	}
	return all, nil
}

// goVersion returns the version of the Go toolchain, an input of every build. If there is none, the builds report that.
func goVersion(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
