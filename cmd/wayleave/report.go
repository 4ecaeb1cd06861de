package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"wayleave.dev/reconcile"
)

// report is what `wayleave status` shows, and the JSON behind it.
type report struct {
	Version string `json:"version"`
	Node    string `json:"node"`
	// Role is "owner" or "standby", which waits for another agent of the node; of a writer
	// "writer, elected" or "writer, standby".
	Role string `json:"role"`
	// Mode, Routing and Encryption are those in force.
	Mode       string            `json:"mode"`
	Routing    string            `json:"routing"`
	Encryption string            `json:"encryption"`
	Kernel     map[string]string `json:"kernel"`
	APIServer  string            `json:"apiServer"`
	// Objects counts the model, by kind.
	Objects map[string]int `json:"objects"`
	// Features has the state of every feature that is on.
	Features map[string]reconcile.State `json:"features"`
	// Off are the features that are switched off.
	Off []string `json:"off,omitempty"`
	// Facts are lines of a feature about itself: leases, VIPs, peers.
	Facts map[string][]string `json:"facts,omitempty"`
	// VIPs are the addresses of load balancers with who answers for them, as seen here.
	VIPs []vipStatus `json:"vips,omitempty"`
	// Policies are the isolated pods of this node, with what was dropped.
	Policies []policyStatus `json:"policies,omitempty"`
	// Wrong is what does not work or is refused, in words.
	Wrong []string `json:"wrong,omitempty"`
	// Notes are what has no effect as things are, and is no fault.
	Notes []string `json:"notes,omitempty"`
}

// text renders the report for people.
func (r report) text(now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "wayleave %s on %s (%s)\n", r.Version, r.Node, r.Role)
	fmt.Fprintf(&b, "mode: %s  routing: %s  encryption: %s\n", r.Mode, r.Routing, r.Encryption)
	fmt.Fprintf(&b, "API server: %s\n", r.APIServer)
	if len(r.Kernel) > 0 {
		fmt.Fprintf(&b, "kernel: %s\n", pairs(r.Kernel))
	}
	var counts []string
	for _, k := range slices.Sorted(maps.Keys(r.Objects)) {
		counts = append(counts, fmt.Sprintf("%s %d", k, r.Objects[k]))
	}
	fmt.Fprintf(&b, "objects: %s\n", strings.Join(counts, ", "))
	for _, name := range slices.Sorted(maps.Keys(r.Features)) {
		s := r.Features[name]
		state := "in sync"
		switch {
		case s.Error != "":
			state = fmt.Sprintf("failing since %s", now.Sub(s.ErrorSince).Round(time.Second))
			if s.Partial {
				state = "in part " + state
			}
		case !s.Synced:
			state = "starting"
		}
		fmt.Fprintf(&b, "%s: %s, %d programmed, last change %s ago in %s", name, state, s.Keys,
			now.Sub(s.LastApplied).Round(time.Second), s.LastTook.Round(10*time.Microsecond))
		if s.Repairs > 0 {
			fmt.Fprintf(&b, ", %d foreign changes repaired", s.Repairs)
		}
		b.WriteByte('\n')
		for _, line := range r.Facts[name] {
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	if len(r.Off) > 0 {
		fmt.Fprintf(&b, "switched off: %s\n", strings.Join(r.Off, ", "))
	}
	if len(r.Notes) > 0 {
		b.WriteString("without effect:\n")
		for _, n := range r.Notes {
			fmt.Fprintf(&b, "  - %s\n", n)
		}
	}
	if len(r.Wrong) == 0 {
		b.WriteString("nothing is wrong\n")
		return b.String()
	}
	fmt.Fprintf(&b, "wrong:\n")
	for _, w := range r.Wrong {
		fmt.Fprintf(&b, "  - %s\n", w)
	}
	return b.String()
}

// vips lists who owns which address of a load balancer, and since when.
func (r report) vips(now time.Time) string {
	if len(r.VIPs) == 0 {
		return "no address of a load balancer is to be answered for\n"
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ADDRESS\tSERVICE\tOWNER\tSINCE\tNOTE")
	for _, v := range r.VIPs {
		owner := v.Owner
		if owner == "" {
			owner = "nobody"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s ago\t%s\n", v.Addr, v.Service, owner,
			now.Sub(v.Since).Round(time.Second), v.Note)
	}
	if err := t.Flush(); err != nil {
		return err.Error() + "\n"
	}
	return b.String()
}

// policies lists this node's isolated pods, by what, and what was dropped.
func (r report) policies() string {
	if len(r.Policies) == 0 {
		return "no pod of this node is isolated by a policy\n"
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POD\tADDRESS\tDIRECTION\tDROPPED\tISOLATED BY")
	for _, p := range r.Policies {
		by := strings.Join(p.Policies, ", ")
		if by == "" {
			by = "all policies of its namespace, until the pod is known"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", p.Pod, p.Addr, p.Direction, p.Dropped, by)
	}
	if err := t.Flush(); err != nil {
		return err.Error() + "\n"
	}
	return b.String()
}

func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+" "+m[k])
	}
	return strings.Join(out, ", ")
}
