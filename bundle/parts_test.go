package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"wayleave.dev/source/kubernetes/fleet"
)

// seeded is a cluster that has secrets everywhere.
type seeded struct{ lost string }

// Exec implements Cluster.
func (s seeded) Exec(_ context.Context, p fleet.Pod, container string, _ int, command ...string) ([]byte, error) {
	if p.Node == s.lost {
		return nil, errors.New("node is away; token=canary-of-error")
	}
	if command[1] == "status" {
		return json.Marshal(map[string]any{"wrong": list(seeds()), "node": p.Node})
	}
	state := map[string]Text{}
	for _, name := range nodeTexts() {
		state[name] = Text{Text: container + "\n" + strings.Join(list(seeds()), "\n")}
	}
	state["metrics.txt"] = Text{Text: "half", Error: "connection refused; password=canary"}
	return json.Marshal(state)
}

// Logs implements Cluster.
func (s seeded) Logs(_ context.Context, p fleet.Pod, container string, _ bool, _ int64) ([]byte, error) {
	if p.Node == s.lost {
		return nil, errors.New("node is away")
	}
	return []byte("log of " + container + "\n" + strings.Join(list(seeds()), "\n")), nil
}

// Objects implements Cluster.
func (s seeded) Objects(_ context.Context, k fleet.Kind, _ int64) (map[string]any, bool, error) {
	object := map[string]any{"kind": "X", "metadata": map[string]any{"name": "kept", "annotations": map[string]any{
		"kubectl.kubernetes.io/last-applied-configuration": "canary", "note": strings.Join(list(seeds()), "\n")}},
		"spec": map[string]any{"env": []any{map[string]any{"name": "A", "value": "canary"}}, "text": strings.Join(
			list(seeds()), "\n")}}
	return map[string]any{"kind": "List", "items": []any{object}}, k.String() == "services", nil
}

func list(m map[string]string) (out []string) {
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// Secrets that are in logs, states, objects, settings and errors are in no byte of the archive; a node that is away is
// named in the index.
func TestNoSecretIsInTheArchive(t *testing.T) {
	c := &fleet.Cluster{}
	for _, n := range []string{"n1", "n2"} {
		c.Agents = append(c.Agents, fleet.Pod{Namespace: "kube-system", Name: "agent-" + n, Node: n,
			Containers: []fleet.Container{{Name: "agent", Restarts: 1}, {Name: "dns"}}})
	}
	c.Writers = []fleet.Pod{{Namespace: "kube-system", Name: "writer-1",
		Containers: []fleet.Container{{Name: "writer"}}}}
	parts := Parts(seeded{lost: "n2"}, c, map[string]string{"status.txt": strings.Join(list(seeds()), "\n")})
	var b bytes.Buffer
	index, err := Write(t.Context(), &b, "b", "v1", parts, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	got := files(t, b.Bytes())
	for name, text := range got {
		if at := strings.Index(text, "canary"); at >= 0 {
			t.Errorf("%s has a secret: …%s…", name, text[max(0, at-60):min(len(text), at+30)])
		}
	}
	for _, name := range []string{"status.txt", "nodes/n1/nftables.txt", "nodes/n1/metrics.txt", "nodes/n1/status.json",
		"nodes/n1/agent-n1.agent.log", "nodes/n1/agent-n1.agent.previous.log", "nodes/n1/agent-n1.dns.log",
		"writers/writer-1.writer.log", "objects/nodes.yaml", "objects/ingresses.networking.k8s.io.yaml",
		"objects/events.yaml"} {
		if got["b/"+name] == "" {
			t.Errorf("no %s", name)
		}
	}
	away := 0
	for _, e := range index.Parts {
		if strings.HasPrefix(e.Name, "nodes/n2/") && strings.Contains(e.Error, "node is away") {
			away++
		} else if e.Name == "nodes/n1/metrics.txt" {
			if !strings.HasPrefix(e.Error, "connection refused") {
				t.Errorf("a text that is not whole: %q", e.Error)
			}
		} else if e.Error != "" && e.Name != "objects/services.yaml" {
			t.Errorf("%s: %s", e.Name, e.Error)
		}
	}
	if want := len(nodeTexts()) + 1 + 3; away != want || !strings.Contains(index.Summary(), "nodes/n2/status.json") {
		t.Errorf("%d of %d parts of the node that is away are named:\n%s", away, want, index.Summary())
	}
	for _, k := range fleet.Kinds() {
		if strings.Contains(k.String(), "secret") {
			t.Errorf("a bundle reads %s", k)
		}
	}
}

// The state of a node has all texts that a bundle asks for.
func TestTheStateOfANode(t *testing.T) {
	state := NodeState(t.Context())
	for _, name := range nodeTexts() {
		if _, ok := state[name]; !ok {
			t.Errorf("no %s", name)
		}
	}
	if len(state) != len(nodeTexts()) || !strings.Contains(state["links.txt"].Text, "lo mtu") ||
		!strings.Contains(state["sysctls.txt"].Text, "ip_forward = ") {
		t.Errorf("%d texts: %v", len(state), state)
	}
}
