package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/process"
)

// prepareNetwork adds what the network needs to the nodes, before they start.
func (u *up) prepareNetwork() error {
	if u.Network == Upstream {
		return u.prepareUpstream()
	}
	return nil
}

// network installs the network into the running cluster and waits until it
// works.
func (u *up) network(ctx context.Context) error {
	switch u.Network {
	case Upstream:
		if err := u.kubectl(ctx, coreDNSManifest(), "apply", "-f", "-"); err != nil {
			return err
		}
	case Wayleave:
		if err := u.applySettings(ctx); err != nil {
			return err
		}
		manifest := filepath.Join(u.checkout, "deploy", "wayleave.yaml")
		if err := u.kubectl(ctx, "", "apply", "-f", manifest); err != nil {
			return err
		}
		if err := u.kubectl(ctx, "", "-n", "kube-system", "rollout", "status", "daemonset/wayleave",
			"--timeout=120s"); err != nil {
			return u.withPods(ctx, err)
		}
	default:
		return nil
	}
	if err := u.awaitReady(ctx); err != nil {
		return u.withPods(ctx, err)
	}
	u.Progress.Printf("all nodes are Ready")
	if err := u.awaitDNS(ctx); err != nil {
		return u.withPods(ctx, err)
	}
	u.Progress.Printf("cluster DNS answers on every node")
	return nil
}

// applySettings makes the ConfigMap wayleave-settings of the file with settings, before the first agent reads it.
func (u *up) applySettings(ctx context.Context) error {
	if u.File == "" {
		return nil
	}
	return u.kubectl(ctx, "", "-n", "kube-system", "create", "configmap", "wayleave-settings",
		"--from-file=config.yaml="+u.File)
}

// withPods adds the state of the system's pods to an error.
func (u *up) withPods(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	questions := [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"-n", "kube-system", "get", "events", "--field-selector=type=Warning", "--sort-by=.lastTimestamp"},
	}
	if u.Network == Wayleave {
		questions = append(questions, []string{"-n", "kube-system", "logs", "daemonset/wayleave",
			"--all-containers", "--tail=20"})
	}
	for _, args := range questions {
		out, _ := u.command(ctx, args...).CombinedOutput() // partial output is better than none
		err = fmt.Errorf("%w\n%s", err, ending(out))
	}
	return err
}

// ending returns the end of a text, short enough to read.
func ending(text []byte) []byte {
	const most = 4000
	text = bytes.TrimSpace(text)
	if len(text) > most {
		text = append([]byte("…"), text[len(text)-most:]...)
	}
	return text
}

// command returns a kubectl command for the starting lab.
func (u *up) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, u.programs.Kubectl, args...)
	cmd.Env = append(process.Environment(), "KUBECONFIG="+u.Dirs.Kubeconfig())
	return cmd
}

func (u *up) kubectl(ctx context.Context, stdin string, args ...string) error {
	cmd := u.command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// awaitDNS waits until every node can resolve a cluster name at the DNS address of pods.
func (u *up) awaitDNS(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startDeadline, errors.New("the cluster's DNS did not answer in time"))
	defer cancel()
	server := netip.AddrPortFrom(fabric.ClusterDNS, 53)
	for _, m := range u.plan.Nodes {
		err := process.WaitFor(ctx, "DNS on "+m.Name, 200*time.Millisecond, func() error {
			return resolve(m.Namespace, server, "kubernetes.default.svc.cluster.local.",
				fabric.ServicesV4.Addr().Next())
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// resolve queries a server, from a namespace, for a name that has that address.
func resolve(namespace string, server netip.AddrPort, name string, want netip.Addr) error {
	return fabric.Do(namespace, func() error {
		client := &dns.Client{Timeout: time.Second}
		reply, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), server.String())
		if err != nil {
			return fmt.Errorf("lab: resolve %s at %s: %w", name, server, err)
		}
		for _, rr := range reply.Answer {
			if a, ok := rr.(*dns.A); ok && a.A.String() == want.String() {
				return nil
			}
		}
		return fmt.Errorf("lab: %s at %s: %s, %v; expected %s", name, server, dns.RcodeToString[reply.Rcode],
			reply.Answer, want)
	})
}

// buildWayleave makes the checkout build its image.
func (u *up) buildWayleave(ctx context.Context) error {
	for _, file := range []string{"Makefile", "deploy/wayleave.yaml"} {
		if _, err := os.Stat(filepath.Join(u.checkout, file)); err != nil {
			return fmt.Errorf("lab: --network wayleave: %w", err)
		}
	}
	archive := filepath.Join(u.checkout, "dist", "wayleave.tar")
	err := u.Progress.Step("make image", func() error {
		cmd := exec.CommandContext(ctx, "make", "-s", "image")
		cmd.Dir = u.checkout
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.WaitDelay = 20 * time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("lab: make image: %w\n%s", err, bytes.TrimSpace(out))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if _, err := os.Stat(archive); err != nil {
		return fmt.Errorf("lab: make image: %w", err)
	}
	u.images = append(u.images, archive)
	return nil
}
