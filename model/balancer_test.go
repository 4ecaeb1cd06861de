package model

import (
	"math"
	"net/netip"
	"testing"
)

func TestTheSizeOfARange(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		want     int64
	}{
		{"192.0.2.1", "192.0.2.1", 1},
		{"192.0.2.0", "192.0.2.255", 256},
		{"0.0.0.0", "255.255.255.255", 1 << 32},
		{"2001:db8::", "2001:db8::ff", 256},
		{"2001:db8::ffff:ffff:ffff:ffff", "2001:db8:0:1::", 2}, // over the border of the halves
		{"2001:db8::", "2001:db8::7fff:ffff:ffff:fffd", math.MaxInt64 - 1},
		{"2001:db8::", "2001:db8::ffff:ffff:ffff:ffff", math.MaxInt64},
		{"2001:db8::", "2001:db8:0:1::", math.MaxInt64},
		{"2001:db8::", "2001:db8:0:2::", math.MaxInt64},
		{"::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", math.MaxInt64},
	} {
		r := Range{netip.MustParseAddr(tc.from), netip.MustParseAddr(tc.to)}
		if got := r.Size(); got != tc.want {
			t.Errorf("%s has %d addresses, want %d", r, got, tc.want)
		}
		if !r.Contains(r.From) || !r.Contains(r.To) || r.Contains(r.To.Next()) ||
			r.Contains(netip.MustParseAddr("::ffff:192.0.2.1")) && r.From.Is4() {
			t.Errorf("%s contains the wrong addresses", r)
		}
	}
}

func TestSelectors(t *testing.T) {
	labels := map[string]string{"tier": "web", "empty": ""}
	for _, tc := range []struct {
		name string
		s    Selector
		want bool
	}{
		{"none", Selector{}, true},
		{"nothing", Selector{Nothing: true}, false},
		{"in", Selector{Requirements: []Requirement{{"tier", In, []string{"db", "web"}}}}, true},
		{"not in the list", Selector{Requirements: []Requirement{{"tier", In, []string{"db"}}}}, false},
		{"in, not there", Selector{Requirements: []Requirement{{"zone", In, []string{""}}}}, false},
		{"in, empty value", Selector{Requirements: []Requirement{{"empty", In, []string{""}}}}, true},
		{"notin", Selector{Requirements: []Requirement{{"tier", NotIn, []string{"web"}}}}, false},
		{"notin, not there", Selector{Requirements: []Requirement{{"zone", NotIn, []string{"a"}}}}, true},
		{"exists", Selector{Requirements: []Requirement{{"tier", Exists, nil}}}, true},
		{"does not exist", Selector{Requirements: []Requirement{{"tier", DoesNotExist, nil}}}, false},
		{"all must hold", Selector{Requirements: []Requirement{{"tier", Exists, nil}, {"zone", Exists, nil}}}, false},
	} {
		if got := tc.s.Matches(labels); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
		if !tc.s.Equal(tc.s) || tc.s.Equal(Selector{Requirements: []Requirement{{"other", Exists, nil}}}) {
			t.Errorf("%s: compares wrongly", tc.name)
		}
	}
}
