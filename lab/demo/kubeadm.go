package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// withKubeadm is played on a bare lab by hack/test-kubeadm: the recipe of docs/install for kubeadm, word for word. The
// checks of a cluster come between, by their own names.
func withKubeadm() chapter {
	return chapter{"A cluster by kubeadm: the commands are those of docs/install", []check{
		{name: "kubeadm-cluster", say: "kubeadm init, and kubeadm join of another node",
			run: block(0, afterInit), within: 8 * time.Minute, apart: true},
		{name: "kubeadm-node-pre",
			say: "`wayleave check --pre --node` finds no failure on a node that waits for a network",
			run: preNode, within: time.Minute, apart: true},
		{name: "kubeadm-install",
			say: "`wayleave check --pre`, the image, the manifest, `wayleave check`: nodes get Ready",
			run: block(1, afterInstall), within: 6 * time.Minute, apart: true},
		{name: "kubeadm-listens", say: "the control plane is reached by its Service, and by pods of each node",
			run: fromEveryNode(controlPlane), within: time.Minute, apart: true},
		{name: "kubeadm-takeover", say: "`wayleave install` takes over what kubectl applied: nothing is lost",
			run:    taken,
			within: 3 * time.Minute, apart: true},
		{name: "kubeadm-plan", say: "`kubeadm upgrade plan` finds the cluster healthy", run: block(2, nothing),
			within: 3 * time.Minute, apart: true},
		{name: "kubeadm-remove", say: "`wayleave uninstall` and kubeadm reset leave nothing on the nodes",
			run: block(3, afterRemoval), within: 6 * time.Minute, apart: true},
		{name: "kubeadm-again", say: "and the recipe works again on the same machines",
			run: block(0, afterInit), within: 8 * time.Minute, apart: true},
	}}
}

// places stand for the reader's in the page.
var places = strings.NewReplacer("CONTROL", "node1", "WORKER…", "node2")

// ssh and scp of the lab: its machines run no SSH server.
const (
	sshScript = `#!/bin/sh
to=$1; shift
exec %[1]s exec "$to" -- sh -c "unset KUBECONFIG CONTAINERD_NAMESPACE; cd
$*"
`
	scpScript = `#!/bin/sh
exec %[1]s exec "${2%%:}" -- sh -c "cat > /root/$(basename "$1")" < "$1"
`
)

// block runs a code block of the page's section, at a client outside of the cluster, in a folder that lasts between
// blocks.
func block(n int, after func(context.Context, *Tour) error) func(context.Context, *Tour) error {
	return func(ctx context.Context, t *Tour) error {
		all, err := section("docs/install/README.md", "kubeadm")
		if err != nil {
			return err
		}
		if n >= len(all) {
			return fmt.Errorf("docs/install/README.md: section kubeadm has %d blocks of commands", len(all))
		}
		dir, err := t.desk()
		if err != nil {
			return err
		}
		version, err := t.command(ctx, nil, t.Lab, "exec", "node1", "--", "kubelet", "--version")
		if err != nil {
			return err
		}
		version = strings.TrimPrefix(version, "Kubernetes ")
		script := "cd " + dir + "\nexport PATH=" + dir + "/bin:$PATH KUBECONFIG=" + dir + "/kubeconfig\n" +
			strings.ReplaceAll(places.Replace(all[n]), "VERSION", version)
		if _, err := t.at(ctx, "outside", "bash", "-euo", "pipefail", "-c", script); err != nil {
			return err
		}
		return after(ctx, t)
	}
}

// section returns the blocks of commands below a heading of a page.
func section(page, heading string) ([]string, error) {
	raw, err := os.ReadFile(page)
	if err != nil {
		return nil, err
	}
	_, text, ok := strings.Cut(string(raw), "\n## "+heading+"\n")
	if !ok {
		return nil, fmt.Errorf("%s: no heading %q", page, heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	var out []string
	var b strings.Builder
	for line := range strings.Lines(text + "\n") {
		if code, ok := strings.CutPrefix(line, "    "); ok {
			b.WriteString(code)
		} else if b.Len() > 0 {
			out = append(out, b.String())
			b.Reset()
		}
	}
	return out, nil
}

// desk is the folder of the person who follows the page: a checkout that is built, and the lab's ssh.
func (t *Tour) desk() (string, error) {
	dir := filepath.Join(filepath.Dir(t.Kubeconfig), "desk")
	checkout, err := os.Getwd()
	if err != nil {
		return "", err
	}
	errs := []error{os.MkdirAll(filepath.Join(dir, "bin"), 0o755)}
	for name, text := range map[string]string{"ssh": sshScript, "scp": scpScript} {
		errs = append(errs, os.WriteFile(filepath.Join(dir, "bin", name), fmt.Appendf(nil, text, t.Lab), 0o755))
	}
	for name, to := range map[string]string{"dist": filepath.Join(checkout, "dist"),
		"deploy": filepath.Join(checkout, "deploy"), "bin/wayleave": t.program()} {
		if err := os.Symlink(to, filepath.Join(dir, name)); !errors.Is(err, os.ErrExist) {
			errs = append(errs, err)
		}
	}
	return dir, errors.Join(errs...)
}

// afterInit makes the cluster's kubeconfig usable on this machine, which is not in the nodes' network.
func afterInit(ctx context.Context, t *Tour) error {
	dir, err := t.desk()
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(dir, "kubeconfig"))
	if err != nil {
		return err
	}
	text := string(raw)
	_, rest, ok := strings.Cut(text, "server: ")
	if !ok {
		return errors.New("the cluster's kubeconfig names no server")
	}
	server, _, _ := strings.Cut(rest, "\n")
	text = strings.Replace(text, server, t.Server+"\n    tls-server-name: kubernetes", 1)
	if err := os.WriteFile(t.Kubeconfig, []byte(text), 0o600); err != nil {
		return err
	}
	return eventually(ctx, func() error {
		cidrs, err := t.fields(ctx, "{.items[*].spec.podCIDR}", "nodes")
		if err == nil && len(cidrs) != 2 {
			err = fmt.Errorf("2 nodes should have a podCIDR, found %v", cidrs)
		}
		return err
	})
}

func nothing(context.Context, *Tour) error { return nil }

// preNode checks the second node before the installation.
func preNode(ctx context.Context, t *Tour) error {
	out, err := t.at(ctx, "node2", t.program(), "check", "--pre", "--node")
	return errors.Join(err, want(out, "the API server https://172.30.0.11:6443 can be reached", " 0 failed"))
}

// afterInstall lets both nodes have pods, for the checks that follow.
func afterInstall(ctx context.Context, t *Tour) error {
	_, err := t.kubectl(ctx, "taint", "nodes", "node1", "node-role.kubernetes.io/control-plane-")
	return err
}

// controlPlane reaches the API server from a pod, by its name.
func controlPlane(ctx context.Context, t *Tour, pod string) error {
	out, err := t.in(ctx, pod, "curl", "-sSk", "-m", "5", "https://kubernetes.default/livez")
	return errors.Join(err, want(out, "ok"))
}

// taken installs over what kubectl has installed, under the loss meter.
func taken(ctx context.Context, t *Tour) error {
	echo, err := t.echo(ctx)
	if err != nil {
		return err
	}
	return t.meter(ctx, 0, func() error {
		_, err := t.wayleave(ctx, "install", "--filename=deploy/wayleave.yaml", "--timeout=2m")
		return errors.Join(err, rollout(ctx, t), statusFine(ctx, t))
	}, dnsProbe, "udp="+echo, "tcp="+echo, "connect="+echo)
}

// afterRemoval looks for what should have gone from the nodes.
func afterRemoval(ctx context.Context, t *Tour) error {
	for _, node := range []string{"node1", "node2"} {
		out, err := t.at(ctx, node, "sh", "-c", `wayleave uninstall --verify && nft list tables
ctr -n k8s.io containers ls -q; ls /etc/cni/net.d /etc/kubernetes; rm /usr/local/bin/wayleave`)
		if err != nil {
			return err
		}
		if err := left(out); err != nil {
			return fmt.Errorf("%s: %w", node, err)
		}
	}
	return nil
}

// container is a line with a container's id.
var container = regexp.MustCompile(`(?m)^[0-9a-f]{64}$`)

// left names what a removed node should not have: tables, configurations, containers.
func left(out string) error {
	for _, rest := range []string{"wayleave-", "conflist", "kubelet.conf", "admin.conf"} {
		if strings.Contains(out, rest) {
			return fmt.Errorf("%s is left: %s", rest, out)
		}
	}
	if ids := container.FindAllString(out, -1); len(ids) > 0 {
		return fmt.Errorf("%d containers are left: %s", len(ids), out)
	}
	return nil
}
