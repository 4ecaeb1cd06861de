package ingress

import (
	"fmt"
	"slices"
	"strings"

	"wayleave.dev/proxy/schema"
)

// framing are fields that frame a message, which no annotation may set.
var framing = []string{"connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te",
	"trailer", "transfer-encoding", "upgrade", "x-sent-from"}

// headerLines parses lines of NAME: VALUE, at most maxFields.
func headerLines(to func(p *parser, f schema.Field)) func(*parser, string) error {
	return func(p *parser, v string) error {
		var out []schema.Field
		for line := range strings.SplitSeq(v, "\n") {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			name, value, ok := strings.Cut(line, ":")
			name, value = strings.TrimSpace(name), strings.TrimSpace(value)
			switch {
			case !ok || !isToken(name):
				return fmt.Errorf("%q is not a line of NAME: VALUE", line)
			case slices.Contains(framing, strings.ToLower(name)):
				return fmt.Errorf("%q is a field that only the proxy may set", name)
			}
			if err := fieldTemplate(func(*parser, string) {})(p, value); err != nil {
				return err
			}
			out = append(out, schema.Field{Name: name, Value: value})
		}
		if len(out) == 0 || len(out) > maxFields {
			return fmt.Errorf("has %d lines; allowed: 1 to %d", len(out), maxFields)
		}
		for _, f := range out {
			to(p, f)
		}
		return nil
	}
}
