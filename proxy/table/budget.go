package table

import (
	"errors"
	"fmt"
	"slices"

	"wayleave.dev/proxy/regex"
	"wayleave.dev/proxy/schema"
)

// Bounds of the regular expressions of one host. RE2 takes a time that grows with the
// product of an expression's instructions and the length of the text.
const (
	// maxOfHost and maxOfIngress bound the instructions of all patterns of a host, and of those that one Ingress has
	// there. Excess patterns are closed.
	maxOfHost    = 8192
	maxOfIngress = 4096
	// maxMatched is the longest path that is compared with patterns; see maxWork.
	maxMatched = 8 << 10
	// maxWork bounds instructions times bytes for one request: a longer path answers 414.
	maxWork = 8 << 20
	// MaxCanaries bounds the canaries of a path: each may have a pattern for a field of the request, which is matched
	// with 1 KiB of it. Together they stay within maxWork.
	MaxCanaries = 8
)

// Reasons for closing a pattern that is a valid RE2 expression.
var (
	errIngressFull = fmt.Errorf("the patterns of this Ingress for the host have more than %d instructions",
		maxOfIngress)
	errHostFull = fmt.Errorf("the patterns of the host have more than %d instructions; those of the namespace "+
		"that owns it and of older Ingresses come first", maxOfHost)
)

// compiled is the result for the pattern of a path.
type compiled struct {
	*regex.Program
	err error
}

// compilePatterns compiles the patterns of a host within the bounds, by index of h.Paths. Those of the host's owner
// come first, then the order of h.Paths applies.
func compilePatterns(h *schema.Host) map[int]compiled {
	var order []int
	for i := range h.Paths {
		if o := h.Paths[i].Options; o != nil && o.PathPattern != "" {
			order = append(order, i)
		}
	}
	if len(order) == 0 {
		return nil
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch x, y := h.Paths[a].Foreign, h.Paths[b].Foreign; {
		case x == y:
			return 0
		case x:
			return 1
		}
		return -1
	})
	out, total, of := make(map[int]compiled, len(order)), 0, map[string]int{}
	for _, i := range order {
		p := &h.Paths[i]
		by := owner(p)
		switch {
		case of[by] > maxOfIngress:
			out[i] = compiled{err: errIngressFull}
			continue
		case total > maxOfHost:
			out[i] = compiled{err: errHostFull}
			continue
		}
		prog, err := regex.CompilePath(p.Options.PathPattern)
		if err != nil {
			out[i] = compiled{err: fmt.Errorf("pathPattern: %w", err)}
			continue
		}
		switch of[by] += prog.Steps; {
		case of[by] > maxOfIngress:
			out[i] = compiled{err: errIngressFull}
		case total+prog.Steps > maxOfHost:
			total, out[i] = maxOfHost+1, compiled{err: errHostFull}
		default:
			total += prog.Steps
			out[i] = compiled{Program: prog}
		}
	}
	return out
}

// CheckPatterns returns the patterns of a host that are closed because the host's bounds are reached, by index of
// h.Paths. It compiles them as Make does.
func CheckPatterns(h *schema.Host) map[int]error {
	out := map[int]error{}
	for i, c := range compilePatterns(h) {
		if errors.Is(c.err, errIngressFull) || errors.Is(c.err, errHostFull) {
			out[i] = c.err
		}
	}
	return out
}
