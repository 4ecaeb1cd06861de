package overview

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/reconcile"
	"wayleave.dev/source/kubernetes/fleet"
)

// runner answers for pods by their names.
type runner struct {
	answers map[string]func(ctx context.Context, command []string) ([]byte, error)
	running atomic.Int32
	most    atomic.Int32
}

// Exec implements Runner.
func (r *runner) Exec(ctx context.Context, p fleet.Pod, _ string, _ int, command ...string) ([]byte, error) {
	now := r.running.Add(1)
	defer r.running.Add(-1)
	for {
		most := r.most.Load()
		if now <= most || r.most.CompareAndSwap(most, now) {
			break
		}
	}
	return r.answers[p.Name](ctx, command)
}

func says(report agent.Report) func(context.Context, []string) ([]byte, error) {
	return func(context.Context, []string) ([]byte, error) { return json.Marshal(report) }
}

func fine(node string) agent.Report {
	return agent.Report{Version: "v1", Node: node, Role: "owner", Mode: "nftables", Off: []string{"ingress"},
		Features: map[string]reconcile.State{"service": {Synced: true}, "dns": {Synced: true}}}
}

func cluster(nodes ...string) *fleet.Cluster {
	c := &fleet.Cluster{Errors: map[string]string{}, Settings: map[string]fleet.Settings{}}
	for _, n := range nodes {
		c.Nodes = append(c.Nodes, fleet.Node{Name: n})
		c.Agents = append(c.Agents, fleet.Pod{Name: "agent-" + n, Node: n})
	}
	return c
}

// Each way in which a node fails is a row and a line, and no other row is lost.
func TestANodeThatFailsIsARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster("good", "ill", "mute", "refuses", "old", "garbage", "none")
		c.Agents = c.Agents[:6]
		ill := fine("ill")
		ill.Version = "v2"
		ill.Wrong = []string{"dns: no socket"}
		ill.Features["dns"] = reconcile.State{Error: "no socket"}
		c.Writers = []fleet.Pod{{Namespace: "kube-system", Name: "w"}}
		r := &runner{answers: map[string]func(context.Context, []string) ([]byte, error){
			"agent-good": says(fine("good")),
			"agent-ill":  says(ill),
			"agent-mute": func(ctx context.Context, _ []string) ([]byte, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
			"agent-refuses": func(context.Context, []string) ([]byte, error) {
				return nil, errors.New("pods \"agent-refuses\" is forbidden:\nno right")
			},
			"agent-old": func(_ context.Context, command []string) ([]byte, error) {
				if !slices.Contains(command, "--json") {
					return nil, errors.New("unknown shorthand flag: 'o' in -o")
				}
				return json.Marshal(fine("old"))
			},
			"agent-garbage": func(context.Context, []string) ([]byte, error) { return []byte("panic"), nil },
			"w":             says(agent.Report{Version: "v1", Role: "writer, elected"}),
		}}
		start := time.Now()
		o := Of(t.Context(), r, c, "kube-system", "")
		if took := time.Since(start); took > 2*AnswerWithin {
			t.Errorf("a mute node takes %s", took)
		}
		text := o.Text()
		for _, want := range []string{
			"3 of 7 nodes answer",
			"good     v1       owner            nftables  2        -            ingress  none",
			"ill      v2       owner            nftables  1        dns          ingress  1",
			"old      v1       owner ",
			"none     -        no agent ",
			"w        v1       writer, elected ",
			"  - node/ill: dns: no socket\n",
			"  - node/mute: no answer: context deadline exceeded\n",
			"  - node/refuses: no answer: pods \"agent-refuses\" is forbidden: no right\n",
			"  - node/garbage: no answer: invalid character",
			"  - node/none: no agent runs there\n",
			"  - 2 versions run beside each other\n",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		if one := Of(t.Context(), r, c, "kube-system", "good"); len(one.Nodes) != 1 || len(one.Wrong) != 0 {
			t.Errorf("of one node: %+v", one)
		}
	})
}

func TestNodesAreAskedAFewAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &runner{answers: map[string]func(context.Context, []string) ([]byte, error){}}
		var names []string
		for i := range 100 {
			n := fmt.Sprintf("n%03d", i)
			names = append(names, n)
			r.answers["agent-"+n] = func(context.Context, []string) ([]byte, error) {
				time.Sleep(time.Second)
				return json.Marshal(fine(n))
			}
		}
		o := Of(t.Context(), r, cluster(names...), "kube-system", "")
		if most := r.most.Load(); most != atOnce {
			t.Errorf("%d at once; want %d", most, atOnce)
		}
		for i, n := range o.Nodes {
			if n.Report == nil || n.Report.Node != names[i] {
				t.Fatalf("row %d is %+v", i, n)
			}
		}
	})
}

func TestTheOperatorsSettingsAreALine(t *testing.T) {
	const version = "settingsVersion: 99\n"
	now := time.Now()
	for _, tc := range []struct {
		name string
		data map[string]string
		want string
	}{
		{"none", nil, "no ConfigMap wayleave-settings"},
		{"used", map[string]string{"config.yaml": "mode: ipvs\n"}, "the ConfigMap wayleave-settings is used"},
		{"another key", map[string]string{"settings.yaml": "mode: ipvs\n"}, "has no key config.yaml"},
		{"wrong", map[string]string{"config.yaml": "mode: cat\n"}, "refuse this: settings: mode: found \"cat\""},
		{"unknown", map[string]string{"config.yaml": "mdoe: ipvs\n"}, "mdoe"},
		{"later", map[string]string{"config.yaml": version + "mdoe: ipvs\n"}, "not used: settings.yaml: mdoe"},
		{"changed", map[string]string{"config.yaml": "mode: ipvs\n"}, "1 pods started before"},
	} {
		c := cluster("a", "b")
		c.Agents[0].Started, c.Agents[1].Started = now, now.Add(-time.Hour)
		if tc.name != "changed" {
			c.Agents[1].Started = now
		}
		if tc.data != nil {
			c.Settings["wayleave-settings"] = fleet.Settings{Data: tc.data, Changed: now.Add(-time.Minute)}
		}
		if got := strings.Join(settings(c), "\n"); !strings.Contains(got, tc.want) {
			t.Errorf("%s: %s; want %s", tc.name, got, tc.want)
		}
	}
}
