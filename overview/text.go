package overview

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// Text is the table for people.
func (o Overview) Text() string {
	var b strings.Builder
	answer := 0
	for _, n := range o.Nodes {
		if n.Report != nil {
			answer++
		}
	}
	fmt.Fprintf(&b, "Wayleave in %s: %d of %d nodes answer\n\n", o.Namespace, answer, len(o.Nodes))
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tVERSION\tROLE\tMODE\tIN SYNC\tNOT IN SYNC\tOFF\tPROBLEMS")
	for _, n := range o.Nodes {
		fmt.Fprintln(w, strings.Join(n.cells(), "\t"))
	}
	for _, a := range o.Writers {
		name, version, role := a.Pod.Name, "-", "no answer"
		if a.Report != nil {
			version, role = a.Report.Version, a.Report.Role
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t-\t-\t-\t-\t%s\n", name, version, role, a.count())
	}
	_ = w.Flush() // to a string
	b.WriteByte('\n')
	for _, line := range o.Settings {
		fmt.Fprintf(&b, "settings: %s\n", line)
	}
	if len(o.Wrong) == 0 {
		b.WriteString("nothing is wrong\n")
		return b.String()
	}
	b.WriteString("wrong:\n")
	for _, line := range o.Wrong {
		fmt.Fprintf(&b, "  - %s\n", line)
	}
	return b.String()
}

func (n Node) cells() []string {
	switch {
	case n.Missing:
		return []string{n.Name, "-", "no agent", "-", "-", "-", "-", "1"}
	case n.Report == nil:
		return []string{n.Name, "-", "no answer", "-", "-", "-", "-", n.count()}
	}
	var bad []string
	good := 0
	for _, name := range slices.Sorted(maps.Keys(n.Report.Features)) {
		if s := n.Report.Features[name]; s.Synced && s.Error == "" {
			good++
		} else {
			bad = append(bad, name)
		}
	}
	list := func(l []string) string { return cmp.Or(strings.Join(l, ","), "-") }
	return []string{n.Name, n.Report.Version, n.Report.Role, n.Report.Mode, fmt.Sprint(good), list(bad),
		list(n.Report.Off), n.count()}
}

// count is the number of problems of a pod.
func (a Answer) count() string {
	n := 0
	if a.Error != "" {
		n++
	}
	if a.Report != nil {
		n += len(a.Report.Wrong)
	}
	for _, c := range a.Pod.Containers {
		if c.Problem != "" {
			n++
		}
	}
	if n == 0 {
		return "none"
	}
	return fmt.Sprint(n)
}
