// Package fleet reads an installation of Wayleave, and the cluster around it, through the API server, for commands of
// people. It changes nothing, and it needs the rights of the caller alone.
package fleet

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	kubesource "wayleave.dev/source/kubernetes"
)

// The labels of pods of agents and writers, see deploy/manifest.tmpl.
const (
	agentLabel  = "app.kubernetes.io/name=wayleave"
	writerLabel = "app.kubernetes.io/name=wayleave-writer"
)

// Fleet is the installation in a namespace of a cluster. Safe for concurrent use.
type Fleet struct {
	Client    *kubesource.Client
	Namespace string
}

// Pod is a pod of Wayleave.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Node      string `json:"node"`
	Ready     bool   `json:"ready"`
	// Containers are the names of containers, and of the init containers before them.
	Containers []Container `json:"containers,omitempty"`
	Started    time.Time   `json:"started"`
}

// Container is one of a pod.
type Container struct {
	Name     string `json:"name"`
	Image    string `json:"image"`
	Restarts int32  `json:"restarts"`
	// Problem says why the container does not run, or ended last; empty if nothing is known.
	Problem string `json:"problem,omitempty"`
	Init    bool   `json:"init,omitempty"`
}

// Agents are the pods of all nodes, in the order of the nodes' names; on a node a ready pod comes first.
func (f Fleet) Agents(ctx context.Context) ([]Pod, error) { return f.pods(ctx, agentLabel) }

// Writers are the replicas of the writer.
func (f Fleet) Writers(ctx context.Context) ([]Pod, error) { return f.pods(ctx, writerLabel) }

func (f Fleet) pods(ctx context.Context, selector string) ([]Pod, error) {
	list, err := f.Client.CoreV1().Pods(f.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("pods of %s with the label %s: %w", f.Namespace, selector, err)
	}
	var out []Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			out = append(out, podOf(&p))
		}
	}
	slices.SortFunc(out, func(a, b Pod) int {
		ready := map[bool]int{true: 0, false: 1}
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(ready[a.Ready], ready[b.Ready]),
			cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

func podOf(p *corev1.Pod) Pod {
	out := Pod{Namespace: p.Namespace, Name: p.Name, Node: p.Spec.NodeName}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Ready = c.Status == corev1.ConditionTrue
		}
	}
	if p.Status.StartTime != nil {
		out.Started = p.Status.StartTime.Time
	}
	for _, c := range p.Spec.InitContainers {
		out.Containers = append(out.Containers, containerOf(c, p.Status.InitContainerStatuses, true))
	}
	for _, c := range p.Spec.Containers {
		out.Containers = append(out.Containers, containerOf(c, p.Status.ContainerStatuses, false))
	}
	return out
}

func containerOf(c corev1.Container, states []corev1.ContainerStatus, init bool) Container {
	out := Container{Name: c.Name, Image: c.Image, Init: init}
	for _, s := range states {
		if s.Name != c.Name {
			continue
		}
		out.Restarts = s.RestartCount
		switch {
		case s.State.Waiting != nil:
			out.Problem = s.State.Waiting.Reason
			if m := s.State.Waiting.Message; m != "" {
				out.Problem += ": " + m
			}
		case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
			out.Problem = fmt.Sprintf("exit status %d: %s", s.State.Terminated.ExitCode, s.State.Terminated.Message)
		}
	}
	return out
}

// Logs returns the newest lines of a container's log, at most limit bytes. previous is the container before its last
// restart.
func (f Fleet) Logs(ctx context.Context, p Pod, container string, previous bool, limit int64) ([]byte, error) {
	const lines = 20000
	tail := int64(lines)
	stream, err := f.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: container,
		Previous: previous, TailLines: &tail, LimitBytes: &limit, Timestamps: true}).Stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("log of %s/%s -c %s: %w", p.Namespace, p.Name, container, err)
	}
	defer stream.Close()
	return io.ReadAll(io.LimitReader(stream, limit))
}

// serverTime is the clock of the API server, to the second, and its version.
func (f Fleet) serverTime(ctx context.Context) (at time.Time, version string, err error) {
	const maxVersion = 64 << 10
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.Client.Server+"/version", nil)
	if err != nil {
		return at, "", fmt.Errorf("API server: %w", err)
	}
	client, err := f.Client.HTTP()
	if err != nil {
		return at, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return at, "", fmt.Errorf("API server: %w", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxVersion))
	if err != nil {
		return at, "", fmt.Errorf("API server: %w", err)
	}
	var v struct {
		GitVersion string `json:"gitVersion"`
	}
	if err := json.Unmarshal(raw, &v); err != nil || v.GitVersion == "" {
		return at, "", fmt.Errorf("API server %s: %s does not say its version: %.200s", f.Client.Server, resp.Status,
			raw)
	}
	at, err = http.ParseTime(resp.Header.Get("Date"))
	return at, v.GitVersion, err
}
