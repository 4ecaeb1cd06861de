package ingress

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"

	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// hasPattern reports whether a path is a regular expression: if an Ingress requests that, and the path is more than
// plain text.
func hasPattern(path, target string) bool {
	return strings.ContainsAny(path, `()[]{}*+?|^$\`) || strings.Contains(target, "$")
}

// checkPattern compiles it as the proxy will.
func checkPattern(path string) error {
	if err := table.Prepare(&schema.Path{Options: &schema.Options{PathPattern: path}}).Err; err != nil {
		return fmt.Errorf("%q is not a valid RE2 expression within the bounds: %w", path, err)
	}
	return nil
}

// decodedPattern returns a regular expression with URL escapes decoded, because requests are compared decoded.
// Invalid UTF-8 escapes stay.
func decodedPattern(path string) string {
	return regexp.MustCompile(`(?:%[0-9A-Fa-f]{2})+`).ReplaceAllStringFunc(path, func(s string) string {
		text, err := url.PathUnescape(s)
		if err != nil || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			return s
		}
		return regexp.QuoteMeta(text)
	})
}
