// Package check says before an installation whether a cluster and its nodes can run Wayleave, and after it whether
// Wayleave works. It changes nothing.
//
// Invariants:
//   - What is read (HostFacts, fleet.Cluster, overview.Overview) is a value; what it means is decided by pure
//
// functions.
//   - Each line that is not good names the command that mends it, or says that none does.
//   - What could not be read is Unknown, and never good.
package check

import (
	"fmt"
	"slices"
	"strings"

	"wayleave.dev/internal/cli"
)

// Level is the result of a check.
type Level string

// The levels. A warning does not keep Wayleave from working.
const (
	Good    Level = "ok"
	Warning Level = "warning"
	Failed  Level = "failed"
	Unknown Level = "unknown"
)

// Line is one check of one place.
type Line struct {
	// ID names the check for machines.
	ID string `json:"id"`
	// Where is the node or object; empty for the cluster, or the node of this command.
	Where string `json:"where,omitempty"`
	Level Level  `json:"level"`
	// Text is what is required if the level is Good, otherwise what was found.
	Text string `json:"text"`
	// Fix is a command, or the setting to change.
	Fix string `json:"fix,omitempty"`
}

// Section is a group of checks.
type Section struct {
	Title string `json:"title"`
	Lines []Line `json:"lines"`
}

// Report is the result of `wayleave check`.
type Report struct {
	// Result is the worst level of all lines.
	Result   Level     `json:"result"`
	Sections []Section `json:"sections"`
}

// New makes a report of sections that have lines.
func New(sections ...Section) Report {
	r := Report{Result: Good, Sections: []Section{}}
	for _, s := range sections {
		if len(s.Lines) == 0 {
			continue
		}
		r.Sections = append(r.Sections, s)
		for _, l := range s.Lines {
			if rank(l.Level) > rank(r.Result) {
				r.Result = l.Level
			}
		}
	}
	return r
}

func rank(l Level) int { return slices.Index([]Level{Good, Warning, Unknown, Failed}, l) }

// Status is the exit status as an error: nil unless something failed or could not be checked.
func (r Report) Status() error {
	switch r.Result {
	case Failed:
		return cli.Status{Code: cli.No}
	case Unknown:
		return cli.Status{Code: cli.Unknown}
	}
	return nil
}

// Text is the report for people. Good lines of the same check are one.
func (r Report) Text() string {
	var b strings.Builder
	count := map[Level]int{}
	for _, s := range r.Sections {
		fmt.Fprintf(&b, "%s\n%s\n", s.Title, strings.Repeat("-", len([]rune(s.Title))))
		for _, l := range s.folded() {
			l.print(&b)
		}
		for _, l := range s.Lines {
			count[l.Level]++
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%d good, %d warnings, %d failed, %d could not be checked\n", count[Good], count[Warning],
		count[Failed], count[Unknown])
	return b.String()
}

// isNode reports whether the line is about a node.
func (l Line) isNode() bool { return strings.HasPrefix(l.Where, "node/") }

// folded joins good lines of nodes about the same check: how many are good says more than their names.
func (s Section) folded() (out []Line) {
	good := map[string]int{}
	for _, l := range s.Lines {
		if l.Level == Good && l.isNode() {
			good[l.ID]++
		}
	}
	seen := map[string]bool{}
	for _, l := range s.Lines {
		if l.Level != Good || !l.isNode() || good[l.ID] == 1 {
			out = append(out, l)
			continue
		}
		if !seen[l.ID] {
			seen[l.ID] = true
			l.Where = fmt.Sprintf("%d nodes", good[l.ID])
			out = append(out, l)
		}
	}
	return out
}

func (l Line) print(b *strings.Builder) {
	mark := map[Level]string{Good: "✓", Warning: "!", Failed: "✗", Unknown: "?"}[l.Level]
	text := l.Text
	if l.Where != "" {
		text = l.Where + ": " + text
	}
	fmt.Fprintf(b, "%s %s\n", mark, text)
	if l.Level == Good || l.Fix == "" {
		return
	}
	for line := range strings.Lines(l.Fix) {
		fmt.Fprintf(b, "    %s\n", strings.TrimSpace(line))
	}
}

// lines collects the lines of one place.
type lines struct {
	where string
	list  []Line
}

// want adds a line: good if ok, otherwise of the level, with what was found and the fix.
func (l *lines) want(ok bool, id, required string, level Level, found, fix string) {
	line := Line{ID: id, Where: l.where, Level: Good, Text: required}
	if !ok {
		line.Level, line.Text, line.Fix = level, found, fix
	}
	l.list = append(l.list, line)
}
