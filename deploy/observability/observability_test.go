package observability

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/internal/metricdocs"
	"wayleave.dev/internal/testnet"
)

// The generated files are those that `make gen` writes.
func TestGeneratedFilesAreFresh(t *testing.T) {
	files, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		have, err := os.ReadFile(filepath.Join("..", "..", name))
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is stale (%v); run `make gen`", name, err)
		}
	}
	found, err := filepath.Glob("dashboards/*.json")
	if err != nil || len(found) != len(Dashboards()) {
		t.Errorf("%v, %v: %d dashboards are generated", found, err, len(Dashboards()))
	}
}

// promtool accepts the rules. In its tests each alert fires alone, and none fires for a cluster that is well.
func TestAlertsFire(t *testing.T) {
	testnet.Need(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
	groups, err := Groups()
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("alerts_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		for _, r := range g.Rules {
			if !bytes.Contains(tests, []byte(fmt.Sprintf("{alertname=%q}", r.Alert))) {
				t.Errorf("no test has %s fire", r.Alert)
			}
		}
	}
}

// Each alert says what is wrong, what it means, which command to run and what to do. The commands of Wayleave exist.
func TestAlertsNameACommand(t *testing.T) {
	groups, err := Groups()
	if err != nil {
		t.Fatal(err)
	}
	commands, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	of := regexp.MustCompile(`/wayleave ((?:[a-z]+ ?)+)`)
	for _, g := range groups {
		for _, r := range g.Rules {
			for _, key := range []string{summary, description, command, action} {
				if r.Annotations[key] == "" {
					t.Errorf("%s: the annotation %s is missing", r.Alert, key)
				}
			}
			if s := r.Labels["severity"]; s != "warning" && s != "critical" || r.For == "" {
				t.Errorf("%s: severity %q, for %q", r.Alert, s, r.For)
			}
			if !strings.HasPrefix(r.Annotations[command], "kubectl ") {
				t.Errorf("%s: %q is no command", r.Alert, r.Annotations[command])
			}
			for _, m := range of.FindAllStringSubmatch(r.Annotations[command], -1) {
				if name := strings.TrimSpace(m[1]); !bytes.Contains(commands, []byte("\n## wayleave "+name+"\n")) {
					t.Errorf("%s: there is no command wayleave %s", r.Alert, name)
				}
			}
		}
	}
}

// expressions are all of the rules and dashboards, by where they are.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	groups, err := Groups()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, g := range groups {
		for _, r := range g.Rules {
			out[r.Alert] = r.Expr
		}
	}
	for _, d := range Dashboards() {
		for _, p := range d.Panels {
			for i, q := range p.Queries {
				out[fmt.Sprintf("%s, %s, %d", d.Title, p.Title, i)] = q.Expr
			}
		}
	}
	if len(out) < 60 {
		t.Fatalf("only %d expressions", len(out))
	}
	return out
}

// Every expression parses, and uses only metrics and labels that docs/metrics.md has.
func TestExpressionsUseMetricsThatExist(t *testing.T) {
	all, err := metricdocs.All()
	if err != nil {
		t.Fatal(err)
	}
	selector := regexp.MustCompile(`\b((?:wayleave|coredns|kubeproxy|go|process)_[a-z0-9_]+)(\{[^}]*\})?`)
	label := regexp.MustCompile(`([a-z_]+)(?:=~?|!=|!~)"`)
	for where, expr := range expressions(t) {
		for _, m := range selector.FindAllStringSubmatch(expr, -1) {
			labels, ok := labelsOf(all, m[1])
			if !ok {
				t.Errorf("%s: there is no metric %s", where, m[1])
			}
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(labels, l[1]) {
					t.Errorf("%s: %s has no label %s", where, m[1], l[1])
				}
			}
			if !strings.Contains(m[2], `job="wayleave"`) {
				t.Errorf("%s: %s is not limited to job=\"wayleave\"", where, m[1])
			}
		}
	}
	parses(t)
}

// labelsOf are the labels of a series, with those that Prometheus and the scrape port add.
func labelsOf(all []metricdocs.Metric, name string) ([]string, bool) {
	added := []string{"job", "instance", "process"}
	if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
		return added, true
	}
	for _, m := range all {
		switch {
		case m.Name == name && m.Type != "histogram":
			return slices.Concat(added, m.Labels), true
		case m.Type == "histogram" && slices.Contains([]string{m.Name + "_sum", m.Name + "_count"}, name):
			return slices.Concat(added, m.Labels), true
		case m.Type == "histogram" && m.Name+"_bucket" == name:
			return slices.Concat(added, m.Labels, []string{"le"}), true
		}
	}
	return nil, false
}

// parses has promtool read every expression, as a rule that records it.
func parses(t *testing.T) {
	t.Helper()
	testnet.Need(t, "promtool")
	var rules []map[string]string
	for _, expr := range expressions(t) {
		expr = strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(expr)
		rules = append(rules, map[string]string{"record": fmt.Sprintf("test:expression:%d", len(rules)), "expr": expr})
	}
	raw, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "test", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("promtool", "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
}

// A dashboard has what Grafana needs: unique names, panels that do not overlap, and a data source that one chooses.
func TestDashboardsAreOfGrafanasModel(t *testing.T) {
	uids := map[string]bool{}
	for _, d := range Dashboards() {
		raw, err := os.ReadFile(filepath.Join("dashboards", d.Name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var m struct {
			UID        string `json:"uid"`
			Title      string `json:"title"`
			Templating struct {
				List []struct {
					Name string `json:"name"`
				} `json:"list"`
			} `json:"templating"`
			Panels []struct {
				ID         int                         `json:"id"`
				Datasource struct{ UID string }        `json:"datasource"`
				GridPos    struct{ X, Y, W, H int }    `json:"gridPos"`
				Targets    []struct{ RefID, Expr any } `json:"targets"`
			} `json:"panels"`
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		if m.UID == "" || uids[m.UID] || m.Title == "" || len(m.Templating.List) == 0 {
			t.Errorf("%s: uid %q, title %q, %d variables", d.Name, m.UID, m.Title, len(m.Templating.List))
		}
		uids[m.UID] = true
		taken := map[[2]int]int{}
		for _, p := range m.Panels {
			if p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
				t.Errorf("%s: panel %d: %+v", d.Name, p.ID, p)
			}
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other, ok := taken[[2]int{x, y}]; ok || x >= columns {
						t.Fatalf("%s: panels %d and %d overlap at %d, %d", d.Name, other, p.ID, x, y)
					}
					taken[[2]int{x, y}] = p.ID
				}
			}
		}
	}
}
