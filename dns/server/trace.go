package server

import (
	"context"
	"strings"
)

type traceKey struct{}

// trace records the sources of an answer, for display.
type trace struct{ sources []string }

// String lists the sources.
func (t *trace) String() string { return strings.Join(t.sources, ", ") }

// traced starts a trace of the work under the context.
func traced(ctx context.Context) (context.Context, *trace) {
	t := &trace{}
	return context.WithValue(ctx, traceKey{}, t), t
}

// note adds a source to the context's trace, if there is one.
func note(ctx context.Context, source string) {
	if t, ok := ctx.Value(traceKey{}).(*trace); ok {
		t.sources = append(t.sources, source)
	}
}
