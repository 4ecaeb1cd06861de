package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// connected runs the test of the network, which is good.
func connected(ctx context.Context, t *Tour) error {
	nodes, err := t.nodes(ctx)
	if err != nil {
		return err
	}
	out, err := t.wayleave(ctx, "test", "connectivity")
	all := fmt.Sprintf("%d nodes: ", len(nodes))
	return errors.Join(err, want(out, all+"pods reach pods of other nodes by UDP over IPv4",
		all+"packets of the path's MTU pass between nodes over IPv4",
		all+"a policy denies what it does not name over IPv4",
		all+"pods resolve a headless Service", "the namespace of the test is removed", " 0 failed"), noTests(ctx, t))
}

// noTests says which namespaces of a test are there.
func noTests(ctx context.Context, t *Tour) error {
	left, err := t.kubectl(ctx, "get", "namespaces", "-l", "wayleave.dev/test", "-o", "name")
	if err == nil && left != "" {
		err = fmt.Errorf("left: %s", left)
	}
	return err
}

// isolateAll isolates all pods of a namespace.
const isolateAll = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-outside, namespace: %s}
spec: {podSelector: {}, policyTypes: [Ingress]}
`

// disconnected breaks the network of a running test by a policy, and then interrupts a test.
func disconnected(ctx context.Context, t *Tour) error {
	type end struct {
		out string
		err error
	}
	done := make(chan end, 1)
	go func() {
		out, err := t.wayleave(ctx, "test", "connectivity", "--skip", "ingress,policy,loadbalancer,dns")
		done <- end{out, err}
	}()
	err := eventually(ctx, func() error {
		name, err := t.one(ctx, "{.items[*].metadata.name}", "namespaces", "-l", "wayleave.dev/test")
		if err != nil {
			return err
		}
		return t.apply(ctx, fmt.Sprintf(isolateAll, name))
	})
	got := <-done
	var status *exec.ExitError
	if errors.As(got.err, &status) && status.ExitCode() == 1 {
		got.err = nil
	} else {
		got.err = fmt.Errorf("the test did not end with status 1: %w",
			errors.Join(got.err, errors.New(head(got.out, 200))))
	}
	if err := errors.Join(err, got.err, want(got.out, "pods do not reach pods of", "pods do not reach a ClusterIP",
		"wayleave explain policy", "the namespace of the test is removed"), noTests(ctx, t)); err != nil {
		return err
	}
	return interrupted(ctx, t)
}

// interrupted ends a test as ^C does, once its pods are there.
func interrupted(ctx context.Context, t *Tour) error {
	cmd := exec.CommandContext(ctx, t.program(), "test", "connectivity")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+t.Kubeconfig)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	err := eventually(ctx, func() error {
		pods, err := t.kubectl(ctx, "get", "pods", "-A", "-l", "app=closed", "-o", "name")
		if err == nil && pods == "" {
			err = errors.New("the test has no pods yet")
		}
		return err
	})
	err = errors.Join(err, cmd.Process.Signal(os.Interrupt))
	var status *exec.ExitError
	if ended := cmd.Wait(); !errors.As(ended, &status) || status.ExitCode() != 2 {
		err = errors.Join(err, fmt.Errorf("after ^C the test ended with %v: %s", ended, said.String()))
	}
	return errors.Join(err, noTests(ctx, t))
}

// uninstalled takes Wayleave off the cluster. It needs a lab of its own: nothing works after it.
func uninstalled(ctx context.Context, t *Tour) error {
	nodes, err := t.nodes(ctx)
	if err != nil {
		return err
	}
	plan, err := t.wayleave(ctx, "uninstall", "--cluster")
	if err := errors.Join(err, want(plan, "nothing was changed", "clean node "+nodes[0],
		"delete DaemonSet kube-system/wayleave")); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "-n", "kube-system", "get", "daemonset", "wayleave"); err != nil {
		return err
	}
	out, err := t.wayleave(ctx, "uninstall", "--cluster", "--yes")
	if err := errors.Join(err, want(out, "cleaned node "+nodes[len(nodes)-1],
		"stays: the Service kube-dns")); err != nil {
		return err
	}
	for _, n := range nodes {
		out, err := t.command(ctx, nil, t.Lab, "exec", n, t.program(), "uninstall", "--verify")
		if err := errors.Join(err, want(out, "nothing of Wayleave is left on this node")); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	left, err := t.kubectl(ctx, "get", "clusterroles,clusterrolebindings,validatingadmissionpolicies,"+
		"validatingadmissionpolicybindings,ingressclasses,namespaces,daemonsets,deployments,configmaps,secrets,"+
		"leases,services,"+
		"serviceaccounts,roles,rolebindings", "-A", "-o", "name")
	if err == nil && strings.Contains(left, "wayleave") {
		err = fmt.Errorf("left in the API: %s", left)
	}
	return errors.Join(err, noTests(ctx, t))
}
