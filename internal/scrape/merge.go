package scrape

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Bounds of the text of a process that may be captured: each line and label costs memory when it is parsed.
const (
	maxLines  = 50_000
	maxLine   = 8 << 10
	maxLabels = 32
)

// ProcessLabel is the label that tells the processes of a node apart.
const ProcessLabel = "process"

// Name and help of the metric that has a value for each process of a node. The status-server sets it for processes that
// have metrics of their own, the agent for those that report to it.
const (
	Up     = "wayleave_process_up"
	UpHelp = "1 when a process of the node gave its metrics to the last scrape, 0 when it did not."
)

// shared are the beginnings of the names that every process may have.
var shared = []string{"go_", "process_", "wayleave_build_info", LeftOut}

// Part is the metrics of one process.
type Part struct {
	// Process becomes the label process of each metric.
	Process string
	// Prefixes are the beginnings of the names that the process may have beside the shared ones; nil allows all.
	Prefixes []string
	Text     []byte
}

// Families are metrics by name.
type Families map[string]*dto.MetricFamily

// Parse reads the metrics of a process. It cannot publish metrics in the name of another one: the label process is set
// here, and a name that it must not have is left out.
func (p Part) Parse() (Families, error) {
	if p.Prefixes != nil {
		if err := withinBounds(p.Text); err != nil {
			return nil, err
		}
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(p.Text))
	if err != nil {
		return nil, err
	}
	for name, f := range families {
		if !p.allows(name) {
			delete(families, name)
			continue
		}
		for _, m := range f.Metric {
			if len(m.Label) > maxLabels {
				return nil, fmt.Errorf("%s: %d labels; %d are allowed", name, len(m.Label), maxLabels)
			}
			m.TimestampMs = nil
			p.label(m)
		}
	}
	return families, nil
}

// Join returns the metrics of processes, in the order of their names. An earlier process decides the type of a name
// that several have; one with another type is left out.
func Join(processes ...Families) []*dto.MetricFamily {
	all := Families{}
	for _, families := range processes {
		for name, f := range families {
			have := all[name]
			switch {
			case have == nil:
				all[name] = f
			case have.GetType() == f.GetType():
				have.Metric = append(have.Metric, f.Metric...)
			}
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b *dto.MetricFamily) int {
		return cmp.Compare(a.GetName(), b.GetName())
	})
}

func (p Part) allows(name string) bool {
	return p.Prefixes == nil || slices.ContainsFunc(slices.Concat(shared, p.Prefixes), func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}

// label sets the label process. The agent, which may publish all names, may set it itself.
func (p Part) label(m *dto.Metric) {
	is := func(l *dto.LabelPair) bool { return l.GetName() == ProcessLabel }
	if p.Prefixes == nil && slices.ContainsFunc(m.Label, is) {
		return
	}
	name, value := ProcessLabel, p.Process
	m.Label = append(slices.DeleteFunc(m.Label, is), &dto.LabelPair{Name: &name, Value: &value})
}

func withinBounds(text []byte) error {
	lines := 0
	for line := range bytes.Lines(text) {
		if lines++; lines > maxLines {
			return fmt.Errorf("more than %d lines", maxLines)
		}
		if len(line) > maxLine {
			return fmt.Errorf("line %d has %d bytes; %d are allowed", lines, len(line), maxLine)
		}
	}
	return nil
}
