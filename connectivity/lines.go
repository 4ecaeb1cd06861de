package connectivity

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"wayleave.dev/check"
	"wayleave.dev/overview"
)

// maxResults bounds what a pod says of its probes, in bytes.
const maxResults = 4 << 20

// maxReasons is how many failed probes a line names.
const maxReasons = 3

// askWithin is how long the probes of a pod may take: they run atOnce at a time.
func askWithin(n int) time.Duration { return 10*time.Second + time.Duration(n/atOnce+1)*probeWithin }

// try has all pods make their probes at the same time, and adds a line for each group and node. It reports whether all
// went well.
func (r *run) try(ctx context.Context, all []attempt) bool {
	number(all)
	byPod := map[string][]attempt{}
	var pods []string
	for _, a := range all {
		if byPod[a.from.Name] == nil {
			pods = append(pods, a.from.Name)
		}
		byPod[a.from.Name] = append(byPod[a.from.Name], a)
	}
	results := make([]map[string]string, len(pods))
	var work []func()
	for i, pod := range pods {
		work = append(work, func() { results[i] = r.resultsOf(ctx, pod, byPod[pod]) })
	}
	overview.InParallel(work)
	errs := map[string]string{}
	for _, one := range results {
		maps.Copy(errs, one)
	}
	return r.judge(all, errs)
}

// resultsOf returns the errors of the probes of a pod by ID, empty for those that went well.
func (r *run) resultsOf(ctx context.Context, pod string, all []attempt) map[string]string {
	var probes []Probe
	for _, a := range all {
		probes = append(probes, a.Probe)
	}
	out := map[string]string{}
	got, err := r.ask(ctx, pod, probes)
	for _, p := range probes {
		i := slices.IndexFunc(got, func(x Result) bool { return x.ID == p.ID })
		switch {
		case err != nil:
			out[p.ID] = "the probe could not be made: " + err.Error()
		case i < 0:
			out[p.ID] = "the pod says nothing of this probe"
		default:
			out[p.ID] = got[i].Error
		}
	}
	return out
}

// ask runs probes in a pod.
func (r *run) ask(ctx context.Context, pod string, probes []Probe) (out []Result, err error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin(len(probes)))
	defer cancel()
	question, err := json.Marshal(probes)
	if err != nil {
		return nil, err
	}
	raw, err := r.place.Exec(ctx, pod, maxResults, "/wayleave", "probe-peers", string(question))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf("answer of the pod %s: %w", pod, err)
	}
	return out, nil
}

// judge makes a line for each node and group.
func (r *run) judge(all []attempt, errs map[string]string) bool {
	type key struct{ node, group string }
	var order []key
	groups := map[key][]attempt{}
	for _, a := range all {
		k := key{a.from.Node, a.group.id}
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], a)
	}
	good := true
	for _, k := range order {
		g := groups[k][0].group
		var reasons []string
		for _, a := range groups[k] {
			if e := errs[a.ID]; e != "" {
				reasons = append(reasons, a.To+": "+e)
			}
		}
		if len(reasons) == 0 {
			r.say(g.section, g.id, "node/"+k.node, check.Good, g.text, "")
			continue
		}
		good = false
		text := fmt.Sprintf("%s: %d of %d failed: %s", g.problem, len(reasons), len(groups[k]),
			strings.Join(reasons[:min(len(reasons), maxReasons)], "; "))
		r.say(g.section, g.id, "node/"+k.node, check.Failed, text, strings.ReplaceAll(g.fix, "%s", k.node))
	}
	return good
}
