// Package report is what an agent or a writer says of itself, for commands on any system.
package report

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"wayleave.dev/reconcile"
)

// Report is what `wayleave status` shows, and the JSON behind it.
type Report struct {
	Version string `json:"version"`
	Node    string `json:"node"`
	// Role is "owner" or "standby", which waits for another agent of the node; of a writer
	// "writer, elected" or "writer, standby".
	Role string `json:"role"`
	// Mode, Routing and Encryption are those in force.
	Mode       string            `json:"mode"`
	Routing    string            `json:"routing"`
	Encryption string            `json:"encryptionMode"`
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
	// Lists are the tables of features. In JSON each is a key beside the others.
	Lists map[string]json.RawMessage `json:"-"`
	// Wrong is what does not work or is refused, in words.
	Wrong []string `json:"wrong,omitempty"`
	// Notes are what has no effect as things are, and is no fault.
	Notes []string `json:"notes,omitempty"`
}

// Text renders the report for people.
func (r Report) Text(now time.Time) string {
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

// AddRows adds the rows of a table, unless there are none.
func (r *Report) AddRows(list string, rows any) {
	raw, err := json.Marshal(rows)
	if text := string(raw); err != nil || text == "null" || text == "[]" {
		return
	}
	if r.Lists == nil {
		r.Lists = map[string]json.RawMessage{}
	}
	r.Lists[list] = raw
}

// plainReport has no methods.
type plainReport Report

// MarshalJSON implements json.Marshaler.
func (r Report) MarshalJSON() ([]byte, error) {
	raw, err := json.Marshal(plainReport(r))
	if err != nil || len(r.Lists) == 0 {
		return raw, err
	}
	all := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	maps.Copy(all, r.Lists)
	return json.Marshal(all)
}

// UnmarshalJSON implements json.Unmarshaler. Lists gets all keys.
func (r *Report) UnmarshalJSON(raw []byte) error {
	if err := json.Unmarshal(raw, (*plainReport)(r)); err != nil {
		return err
	}
	return json.Unmarshal(raw, &r.Lists)
}

func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+" "+m[k])
	}
	return strings.Join(out, ", ")
}

// List is a table of a feature in the status.
type List struct {
	// Name is the name of the flag, and the key of the rows in the JSON of the status.
	Name string
	// Help explains the flag.
	Help string
	// Text renders the rows, which are nil when there are none.
	Text func(rows json.RawMessage, now time.Time) (string, error)
}
