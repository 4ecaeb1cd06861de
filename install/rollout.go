package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
)

// pollEvery is how often the rollout is looked at.
const pollEvery = time.Second

// Wait waits until every pod of the plan's workloads runs its image and is ready, and prints progress. Its error names
// the pods that are not, and why.
func (c Cluster) Wait(ctx context.Context, p *Plan, out io.Writer) error {
	shown := ""
	for {
		state, done, err := c.progress(ctx, p)
		if err == nil && state != shown {
			fmt.Fprintln(out, state)
			shown = state
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return c.late(context.WithoutCancel(ctx), p, out, err)
		case <-time.After(pollEvery):
		}
	}
}

// progress describes the rollout in a line. done means that nothing is left to wait for.
func (c Cluster) progress(ctx context.Context, p *Plan) (state string, done bool, err error) {
	var parts []string
	done = true
	for _, o := range workloads(p.objects) {
		now, err := c.live(ctx, o)
		if err != nil {
			return "", false, err
		}
		if now == nil {
			return "", false, fmt.Errorf("%s: not there", nameOf(o))
		}
		want, updated, available := counts(now)
		parts = append(parts, fmt.Sprintf("%s: %d of %d updated, %d ready", nameOf(o), updated, want, available))
		observed, _, _ := unstructured.NestedInt64(now.Object, "status", "observedGeneration")
		done = done && observed >= now.GetGeneration() && updated == want && available == want
	}
	if done {
		wrong, err := c.pods(ctx, p)
		if err != nil {
			return "", false, err
		}
		done = len(wrong) == 0
	}
	return strings.Join(parts, "; "), done, nil
}

// counts returns how many pods a workload wants, how many are of its current version, and how many of those are ready.
func counts(o *unstructured.Unstructured) (want, updated, available int64) {
	status := func(name string) int64 {
		n, _, _ := unstructured.NestedInt64(o.Object, "status", name)
		return n
	}
	if o.GetKind() == "DaemonSet" {
		return status("desiredNumberScheduled"), status("updatedNumberScheduled"), status("numberAvailable")
	}
	want = 1
	if n, ok, _ := unstructured.NestedInt64(o.Object, "spec", "replicas"); ok {
		want = n
	}
	// An old replica that is still there counts as a pod too many.
	return want, status("updatedReplicas") - max(status("replicas")-want, 0), status("availableReplicas")
}

// pods lists pods of the plan's workloads that do not run its images, or are not ready, each with the reason.
func (c Cluster) pods(ctx context.Context, p *Plan) (wrong []string, err error) {
	for _, o := range workloads(p.objects) {
		match, _, _ := unstructured.NestedStringMap(o.Object, "spec", "selector", "matchLabels")
		at, err := c.at(object("", "v1", "Pod", o.GetNamespace(), ""))
		if err != nil {
			return nil, err
		}
		list, err := at.List(ctx, metav1.ListOptions{LabelSelector: labels.Set(match).String()})
		if err != nil {
			return nil, fmt.Errorf("pods of %s: %w", nameOf(o), err)
		}
		for _, pod := range list.Items {
			if metav1.GetControllerOf(&pod) == nil {
				continue
			}
			if reason := fault(&pod, images(o)); reason != "" {
				node, _, _ := unstructured.NestedString(pod.Object, "spec", "nodeName")
				wrong = append(wrong, fmt.Sprintf("%s on node %q: %s", nameOf(&pod), node, reason))
			}
		}
	}
	return wrong, nil
}

// fault says why a pod is not what the plan wants, empty if it is.
func fault(pod *unstructured.Unstructured, want []string) string {
	if pod.GetDeletionTimestamp() != nil {
		return "it is ending" // it may need what Prune deletes
	}
	specs, _, _ := unstructured.NestedSlice(pod.Object, "spec", "containers")
	for _, s := range specs {
		m, _ := s.(map[string]any)
		if image, _ := m["image"].(string); !slices.Contains(want, image) {
			return fmt.Sprintf("it still runs %s", image)
		}
	}
	for _, field := range []string{"initContainerStatuses", "containerStatuses"} {
		list, _, _ := unstructured.NestedSlice(pod.Object, "status", field)
		for _, s := range list {
			m, _ := s.(map[string]any)
			if reason := waiting(m); reason != "" {
				return reason
			}
		}
	}
	conditions, _, _ := unstructured.NestedSlice(pod.Object, "status", "conditions")
	for _, s := range conditions {
		m, _ := s.(map[string]any)
		if m["type"] == "Ready" && m["status"] != "True" || m["type"] == "PodScheduled" && m["status"] != "True" {
			return fmt.Sprintf("%v: %v %v", m["type"], m["reason"], m["message"])
		}
	}
	return ""
}

// waiting says why a container does not run, with the last words of the one before.
func waiting(status map[string]any) string {
	reason, ok, _ := unstructured.NestedString(status, "state", "waiting", "reason")
	if !ok {
		return ""
	}
	message, _, _ := unstructured.NestedString(status, "state", "waiting", "message")
	if last, _, _ := unstructured.NestedString(status, "lastState", "terminated", "message"); last != "" {
		message = last
	}
	return strings.TrimSpace(fmt.Sprintf("%v: %s: %s", status["name"], reason, firstLines(message, 400)))
}

func firstLines(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + " …"
	}
	return strings.TrimSpace(s)
}

// late prints the pods that are not ready, and returns the error of a rollout that took too long.
func (c Cluster) late(ctx context.Context, p *Plan, out io.Writer, last error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	wrong, err := c.pods(ctx, p)
	for _, w := range wrong {
		fmt.Fprintln(out, w)
	}
	text := fmt.Sprintf(
		"the rollout is not complete: %d pods are not as they should be; where a new pod is not ready, the one "+
			"of before serves on", len(wrong))
	if p.From != nil {
		text += "; to go back: wayleave rollback"
	}
	return errors.Join(errors.New(text), last, err)
}
