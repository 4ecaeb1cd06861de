// Package overview asks all agents and writers of a cluster for their status, and makes one table of the answers.
//
// Invariants:
//   - A node that does not answer costs its own row and a bounded time, never the rows of others.
//   - The size of an answer is bounded, and so is the number of nodes that are asked at once.
package overview

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"wayleave.dev/agent/report"
	"wayleave.dev/config"
	"wayleave.dev/source/kubernetes/fleet"
)

// Bounds of what an installation is asked.
const (
	// AnswerWithin is how long a pod may take to answer.
	AnswerWithin = 15 * time.Second
	// atOnce is how many pods are asked at once.
	atOnce = 16
	// maxAnswer is the longest report, in bytes: that of a node with 10,000 Services and policies is below 4 MiB.
	maxAnswer = 16 << 20
)

// Runner runs a command in a container of a pod, as fleet.Fleet does.
type Runner interface {
	Exec(ctx context.Context, p fleet.Pod, container string, limit int, command ...string) ([]byte, error)
}

// Answer is what a pod says.
type Answer struct {
	Pod fleet.Pod `json:"pod"`
	// Report is the pod's status, nil if it did not answer, for which Error has the reason.
	Report *report.Report `json:"report,omitempty"`
	Error  string         `json:"error,omitempty"`
}

// Node is a row of the table.
type Node struct {
	Name string `json:"name"`
	// Missing says that no agent runs on the node.
	Missing bool `json:"missing,omitempty"`
	Answer
}

// Overview is the state of an installation.
type Overview struct {
	Namespace string   `json:"namespace"`
	Nodes     []Node   `json:"nodes"`
	Writers   []Answer `json:"writers"`
	// Settings are lines about the operator's settings.
	Settings []string `json:"settings"`
	// Wrong are problems, each with the node or writer that has it.
	Wrong []string `json:"wrong"`
}

// Of asks all pods of the cluster. only limits the answer to the node of that name, if it is not empty.
func Of(ctx context.Context, run Runner, c *fleet.Cluster, namespace, only string) Overview {
	o := Overview{Namespace: namespace, Settings: settings(c), Wrong: []string{}}
	agents := firstOfNode(c.Agents)
	for _, n := range c.Nodes {
		if only != "" && n.Name != only {
			continue
		}
		p, ok := agents[n.Name]
		o.Nodes = append(o.Nodes, Node{Name: n.Name, Missing: !ok, Answer: Answer{Pod: p}})
	}
	var work []func()
	for i := range o.Nodes {
		if !o.Nodes[i].Missing {
			work = append(work, func() {
				ask(ctx, run, &o.Nodes[i].Answer, "agent", "/wayleave", "status",
					"-o", "json")
			})
		}
	}
	if only == "" {
		o.Writers = make([]Answer, len(c.Writers))
		for i, p := range c.Writers {
			o.Writers[i].Pod = p
			work = append(work, func() {
				ask(ctx, run, &o.Writers[i], "writer", "/wayleave", "status", "--writer", "-o", "json")
			})
		}
	}
	InParallel(work)
	o.Wrong = append(o.Wrong, o.problems(c)...)
	return o
}

// firstOfNode chooses one pod of each node: during a rollout there are two, and either knows the owner's status.
func firstOfNode(pods []fleet.Pod) map[string]fleet.Pod {
	out := map[string]fleet.Pod{}
	for _, p := range pods {
		if _, ok := out[p.Node]; !ok {
			out[p.Node] = p
		}
	}
	return out
}

// InParallel calls functions, a bounded number at once, and returns when all have returned.
func InParallel(work []func()) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for _, w := range work {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			w()
		})
	}
	wg.Wait()
}

func ask(ctx context.Context, run Runner, a *Answer, container string, command ...string) {
	ctx, cancel := context.WithTimeout(ctx, AnswerWithin)
	defer cancel()
	raw, err := run.Exec(ctx, a.Pod, container, maxAnswer, command...)
	if err != nil && command[len(command)-1] == "json" {
		// Versions before -o have --json.
		old := append(slices.Clone(command[:len(command)-2]), "--json")
		if again, err2 := run.Exec(ctx, a.Pod, container, maxAnswer, old...); err2 == nil {
			raw, err = again, nil
		}
	}
	var r report.Report
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil {
		a.Error = err.Error()
		return
	}
	a.Report = &r
}

// Data is the folder of settings as agents that start now see it: the ConfigMap wayleave with the operator's file, see
// deploy/manifest.tmpl.
func Data(c *fleet.Cluster) map[string]string {
	data := map[string]string{}
	maps.Copy(data, c.Settings["wayleave"].Data)
	if own, ok := c.Settings["wayleave-settings"].Data["config.yaml"]; ok {
		data["settings.yaml"] = own
	}
	return data
}

// settings says whether the operator's settings are used.
func settings(c *fleet.Cluster) (out []string) {
	if problem := c.Errors["settings"]; problem != "" {
		return []string{"the settings cannot be read: " + problem}
	}
	own, ok := c.Settings["wayleave-settings"]
	if !ok {
		return []string{"no ConfigMap wayleave-settings: defaults, and the ConfigMap wayleave, are used"}
	}
	cfg, err := config.ParseData(Data(c))
	switch {
	case own.Data["config.yaml"] == "":
		out = append(out, "the ConfigMap wayleave-settings has no key config.yaml: it has no effect")
	case err != nil:
		out = append(out, "wayleave-settings: the next agents that start refuse this: "+oneLine(err.Error()))
	default:
		out = append(out, "the ConfigMap wayleave-settings is used")
	}
	for _, line := range cfg.Unused {
		out = append(out, "not used: "+line)
	}
	before := 0
	for _, p := range append(slices.Clone(c.Agents), c.Writers...) {
		if !p.Started.IsZero() && p.Started.Before(own.Changed) {
			before++
		}
	}
	if before > 0 {
		out = append(out, fmt.Sprintf("%d pods started before wayleave-settings was changed; to apply it: "+
			"kubectl -n kube-system rollout restart ds/wayleave deploy/wayleave-writer", before))
	}
	return out
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// problems lists what is wrong, the nodes' first.
func (o Overview) problems(c *fleet.Cluster) (out []string) {
	say := func(where string, a Answer) {
		if a.Error != "" {
			out = append(out, where+": no answer: "+oneLine(a.Error))
		}
		if a.Report != nil {
			for _, w := range a.Report.Wrong {
				out = append(out, where+": "+oneLine(w))
			}
		}
		for _, k := range a.Pod.Containers {
			if k.Problem != "" {
				out = append(out, fmt.Sprintf("%s: container %s: %s", where, k.Name, oneLine(k.Problem)))
			}
		}
	}
	versions := map[string]bool{}
	for _, n := range o.Nodes {
		if n.Missing {
			out = append(out, "node/"+n.Name+": no agent runs there")
			continue
		}
		say("node/"+n.Name, n.Answer)
		if n.Report != nil {
			versions[n.Report.Version] = true
		}
	}
	leaders := 0
	for _, w := range o.Writers {
		say("pod/"+w.Pod.Namespace+"/"+w.Pod.Name, w)
		if w.Report != nil && w.Report.Role == "writer, elected" {
			leaders++
		}
	}
	if o.Writers != nil && leaders != 1 {
		out = append(out, fmt.Sprintf("the writer has %d leaders", leaders))
	}
	if len(versions) > 1 {
		out = append(out, fmt.Sprintf("%d versions run beside each other", len(versions)))
	}
	for part, problem := range c.Errors {
		out = append(out, part+": cannot be read: "+oneLine(problem))
	}
	slices.Sort(out[len(out)-len(c.Errors):])
	return out
}
