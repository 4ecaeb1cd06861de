package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"sigs.k8s.io/yaml"

	"wayleave.dev/source/kubernetes/fleet"
)

// Cluster is what a bundle reads of a cluster, as fleet.Fleet does.
type Cluster interface {
	Exec(ctx context.Context, p fleet.Pod, container string, limit int, command ...string) ([]byte, error)
	Logs(ctx context.Context, p fleet.Pod, container string, previous bool, limit int64) ([]byte, error)
	Objects(ctx context.Context, k fleet.Kind, limit int64) (list map[string]any, more bool, err error)
}

// maxObjects is how many objects of a kind are in a bundle.
const maxObjects = 2000

// Parts are the parts of a bundle: logs, the state of each node, and objects. Texts that the caller has already, such
// as the status, come first.
func Parts(from Cluster, c *fleet.Cluster, texts map[string]string) (out []Part) {
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		out = append(out, Part{Name: name, Read: func(context.Context, int) ([]byte, error) {
			return []byte(texts[name]), nil
		}})
	}
	for _, p := range c.Agents {
		out = append(out, nodeParts(from, p)...)
		out = append(out, logParts(from, p, "nodes/"+p.Node)...)
	}
	for _, p := range c.Writers {
		out = append(out, logParts(from, p, "writers")...)
	}
	for _, k := range fleet.Kinds() {
		out = append(out, Part{Name: "objects/" + k.String() + ".yaml",
			Read: func(ctx context.Context, _ int) ([]byte, error) { return objects(ctx, from, k) }})
	}
	return out
}

func logParts(from Cluster, p fleet.Pod, folder string) (out []Part) {
	add := func(name, container string, previous bool) {
		out = append(out, Part{Name: folder + "/" + name, Read: func(ctx context.Context, limit int) ([]byte, error) {
			return from.Logs(ctx, p, container, previous, int64(limit))
		}})
	}
	for _, c := range p.Containers {
		add(p.Name+"."+c.Name+".log", c.Name, false)
		if c.Restarts > 0 {
			add(p.Name+"."+c.Name+".previous.log", c.Name, true)
		}
	}
	return out
}

// Text is a part of the state of a node.
type Text struct {
	Text string `json:"text"`
	// Error says why the text is missing or incomplete. What this kernel does not have is no error.
	Error string `json:"error,omitempty"`
}

// procNet are files of /proc/net.
func procNet() []string {
	return []string{"route", "ipv6_route", "arp", "dev", "snmp", "snmp6", "netstat", "softnet_stat", "sockstat",
		"ip_tables_names", "ip6_tables_names", "stat/nf_conntrack"}
}

func procName(file string) string { return "proc-net/" + path.Base(file) + ".txt" }

// nodeTexts are the names of NodeState, which is read once for all.
func nodeTexts() []string {
	out := []string{"nftables.txt", "ruleset.txt", "links.txt", "sockets.txt", "sysctls.txt", "metrics.txt"}
	for _, n := range procNet() {
		out = append(out, procName(n))
	}
	return out
}

func nodeParts(from Cluster, p fleet.Pod) (out []Part) {
	const maxState = 24 << 20
	var mu sync.Mutex
	var state map[string]Text
	var failed error
	load := func(ctx context.Context) (map[string]Text, error) {
		mu.Lock()
		defer mu.Unlock()
		if state == nil && failed == nil {
			var raw []byte
			if raw, failed = from.Exec(ctx, p, "agent", maxState, "/wayleave", "dump"); failed == nil {
				failed = json.Unmarshal(raw, &state)
			}
		}
		return state, failed
	}
	for _, name := range nodeTexts() {
		out = append(out, Part{Name: "nodes/" + p.Node + "/" + name,
			Read: func(ctx context.Context, _ int) ([]byte, error) {
				all, err := load(ctx)
				if err != nil {
					return nil, err
				}
				text, ok := all[name]
				switch {
				case !ok:
					return nil, errors.New("the agent's version does not have it")
				case text.Error != "":
					err = errors.New(text.Error)
				}
				return []byte(text.Text), err
			}})
	}
	return append(out, Part{Name: "nodes/" + p.Node + "/status.json",
		Read: func(ctx context.Context, limit int) ([]byte, error) {
			return from.Exec(ctx, p, "agent", limit, "/wayleave", "status", "-o", "json")
		}})
}

func objects(ctx context.Context, from Cluster, k fleet.Kind) ([]byte, error) {
	list, more, err := from.Objects(ctx, k, maxObjects)
	if err != nil {
		return nil, err
	}
	Scrub(list)
	raw, err := yaml.Marshal(redactStrings(list))
	if err == nil && more {
		err = fmt.Errorf("there are more than %d objects", maxObjects)
	}
	return raw, err
}

// Summary says in words what a bundle lacks.
func (x Index) Summary() string {
	var b strings.Builder
	size := 0
	for _, e := range x.Parts {
		size += e.Bytes
		if e.Error != "" {
			fmt.Fprintf(&b, "  - %s: %s\n", e.Name, e.Error)
		}
	}
	if x.Failed == 0 {
		return fmt.Sprintf("%d parts, %d KiB, all complete\n", len(x.Parts), size>>10)
	}
	return fmt.Sprintf("%d parts, %d KiB; %d are missing or incomplete:\n%s", len(x.Parts), size>>10,
		x.Failed, b.String())
}
