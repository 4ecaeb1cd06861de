package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"wayleave.dev/internal/await"
	kubesource "wayleave.dev/source/kubernetes"
)

const (
	// Root is where a node's file system is mounted in the containers of OnNodes, and Settings a file in them.
	Root     = "/host"
	Settings = "/settings/config.yaml"

	// maxOutput bounds what a command on a node may print, and onNodeWithin what it may take.
	maxOutput    = 1 << 20
	onNodeWithin = 2 * time.Minute
)

// Output is what a command on a node printed, also if it failed.
type Output struct {
	Text []byte
	// Failed says that the command ended with another status than 0, and Err why there is no output.
	Failed bool
	Err    error
}

// Access says what a command may do on a node.
type Access struct {
	// Writable mounts the node's file system for writing, not only for reading.
	Writable bool
	// Settings is the content of the file Settings.
	Settings string
}

// OnNodes runs a command of an image once on each node: as root, in the node's network, with the node's file system at
// Root. It returns what each printed, and removes everything that it made, also when the context ends. Nodes without a
// network run it, too.
func OnNodes(ctx context.Context, client *kubesource.Client, purpose, image string, nodes []string, a Access,
	command ...string) (out map[string]Output, err error) {
	s, err := openAs(ctx, client, purpose, image, "privileged")
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), onNodeWithin)
		defer cancel()
		if left := s.Remove(ctx); left != nil {
			err = errors.Join(err, fmt.Errorf("%w; to remove it: kubectl delete namespace %s", left, s.name))
		}
	}()
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"},
		Data: map[string]string{"config.yaml": a.Settings}}
	if _, err := client.CoreV1().ConfigMaps(s.name).Create(ctx, settings, metav1.CreateOptions{}); err != nil {
		return nil, fmt.Errorf("settings for the nodes: %w", err)
	}
	names := map[string]string{}
	for i, node := range nodes {
		name := fmt.Sprintf("node-%d", i)
		names[name] = node
		if err := s.create(ctx, s.hostPod(name, node, a, command)); err != nil {
			return nil, err
		}
	}
	return s.outputs(ctx, names)
}

// hostPod runs a command in the network of its node.
func (s *Sandbox) hostPod(name, node string, a Access, command []string) *corev1.Pod {
	p := s.pod(Pod{Name: name, Node: node, App: "on-node"}, 1, command)
	yes, root, propagation := true, int64(0), corev1.MountPropagationHostToContainer
	p.Spec.HostNetwork, p.Spec.HostPID, p.Spec.RestartPolicy = true, true, corev1.RestartPolicyNever
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &root, RunAsGroup: &root}
	p.Spec.Volumes = []corev1.Volume{
		{Name: "root", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}},
		{Name: "settings", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}}}
	c := &p.Spec.Containers[0]
	c.ReadinessProbe = nil
	c.SecurityContext = &corev1.SecurityContext{Privileged: &yes, ReadOnlyRootFilesystem: &yes}
	c.VolumeMounts = []corev1.VolumeMount{
		{Name: "root", MountPath: Root, ReadOnly: !a.Writable, MountPropagation: &propagation},
		{Name: "settings", MountPath: "/settings", ReadOnly: true}}
	return p
}

// outputs waits until all pods have ended, and reads their logs.
func (s *Sandbox) outputs(ctx context.Context, nodes map[string]string) (map[string]Output, error) {
	within, cancel := context.WithTimeout(ctx, onNodeWithin)
	defer cancel()
	out := map[string]Output{}
	err := await.Success(within, every, func() error {
		list, err := s.client.CoreV1().Pods(s.name).List(within, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("pods of %s: %w", s.name, err)
		}
		for _, p := range list.Items {
			node := nodes[p.Name]
			if _, known := out[node]; known || node == "" ||
				p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
				continue
			}
			text, err := s.log(within, p.Name)
			out[node] = Output{Text: text, Failed: p.Status.Phase == corev1.PodFailed, Err: err}
		}
		if len(out) < len(nodes) {
			return errWaits
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err == nil {
		return out, nil
	}
	states, err := s.Pods(ctx)
	for _, p := range states {
		if _, ok := out[p.Node]; !ok {
			out[p.Node] = Output{Err: fmt.Errorf("the pod did not end: %s", p.Problem)}
		}
	}
	return out, err
}

func (s *Sandbox) log(ctx context.Context, pod string) ([]byte, error) {
	limit := int64(maxOutput)
	stream, err := s.client.CoreV1().Pods(s.name).GetLogs(pod, &corev1.PodLogOptions{LimitBytes: &limit}).Stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("log of the pod: %w", err)
	}
	defer stream.Close()
	return io.ReadAll(io.LimitReader(stream, limit))
}
