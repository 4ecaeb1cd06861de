// Package sandbox makes a namespace for the probes of `wayleave test`, what probes need in it, and removes it.
//
// Invariants:
//   - Only namespaces that this package has made are removed: they have its label and a generated name.
//   - Every object is in the namespace, so that nothing is left of a probe when the namespace is gone.
//   - Pods have no token, no capability, and a read-only root.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/internal/await"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/source/kubernetes/fleet"
)

const (
	// Label is on each namespace of this package; its value is the purpose.
	Label  = "wayleave.dev/test"
	prefix = "wayleave-test-"
	// stale is the age from which a namespace of an earlier run counts as left behind.
	stale = time.Hour
	// every is how often states are read while something is awaited.
	every = 500 * time.Millisecond
)

// Sandbox is a namespace with a label of ours. Safe for concurrent use.
type Sandbox struct {
	client *kubesource.Client
	name   string
	image  string
}

// Open makes a namespace, after it has removed those that earlier runs have left behind for an hour. Pods run the
// image.
func Open(ctx context.Context, client *kubesource.Client, purpose, image string) (*Sandbox, error) {
	// The pods meet the strictest standard, so that no cluster's default refuses them.
	return openAs(ctx, client, purpose, image, "restricted")
}

// openAs makes a namespace with a Pod Security Standard.
func openAs(ctx context.Context, client *kubesource.Client, purpose, image, standard string) (*Sandbox, error) {
	if err := sweep(ctx, client, purpose); err != nil {
		return nil, err
	}
	ns, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: prefix, Labels: map[string]string{Label: purpose,
			"pod-security.kubernetes.io/enforce": standard}}},
		metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("namespace for the test: %w", err)
	}
	return &Sandbox{client: client, name: ns.Name, image: image}, nil
}

func sweep(ctx context.Context, client *kubesource.Client, purpose string) error {
	list, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: Label + "=" + purpose})
	if err != nil {
		return fmt.Errorf("namespaces of earlier tests: %w", err)
	}
	for _, ns := range list.Items {
		if ns.DeletionTimestamp != nil || !strings.HasPrefix(ns.Name, prefix) ||
			time.Since(ns.CreationTimestamp.Time) < stale {
			continue // of a run beside this one
		}
		if err := remove(ctx, client, ns.Name, ns.UID); err != nil {
			return err
		}
	}
	return nil
}

// Name is that of the namespace.
func (s *Sandbox) Name() string { return s.name }

// Remove deletes the namespace, and returns when it is gone.
func (s *Sandbox) Remove(ctx context.Context) error {
	ns, err := s.client.CoreV1().Namespaces().Get(ctx, s.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("namespace %s: %w", s.name, err)
	}
	// Pods first, at once: the namespace would wait for their grace period.
	now := int64(0)
	pods := s.client.CoreV1().Pods(s.name)
	if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now},
		metav1.ListOptions{}); err != nil {
		return fmt.Errorf("pods of namespace %s: %w", s.name, err)
	}
	if err := remove(ctx, s.client, s.name, ns.UID); err != nil {
		return err
	}
	return await.Success(ctx, every, func() error {
		_, err := s.client.CoreV1().Namespaces().Get(ctx, s.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("namespace %s is still there: %w", s.name, errors.Join(err, errWaits))
	})
}

var errWaits = errors.New("it is being removed")

func remove(ctx context.Context, client *kubesource.Client, name string, uid types.UID) error {
	err := client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	return nil
}

// Exec runs a command in a pod of the namespace.
func (s *Sandbox) Exec(ctx context.Context, pod string, limit int, command ...string) ([]byte, error) {
	return fleet.Fleet{Client: s.client, Namespace: s.name}.Exec(ctx, fleet.Pod{Namespace: s.name,
		Name: pod}, container,
		limit, command...)
}

// Node is a node of the cluster that can run pods.
type Node struct {
	Name string
	// Addrs are its InternalIPs.
	Addrs []netip.Addr
}

// Nodes are the nodes that run Linux and are ready, by name.
func Nodes(ctx context.Context, client *kubesource.Client) (out []Node, err error) {
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("nodes: %w", err)
	}
	for _, n := range list.Items {
		if os := n.Status.NodeInfo.OperatingSystem; os != "" && os != "linux" || !isReady(n.Status.Conditions) {
			continue
		}
		one := Node{Name: n.Name}
		for _, a := range n.Status.Addresses {
			if addr, err := apiaddr.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
				one.Addrs = append(one.Addrs, addr)
			}
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func isReady(all []corev1.NodeCondition) bool {
	return slices.ContainsFunc(all, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}
