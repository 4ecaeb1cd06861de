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

// hasPattern says whether a path is to be read as a regular expression: where an Ingress
// asks for that, and the path is more than a name.
func hasPattern(path, target string) bool {
	return strings.ContainsAny(path, `()[]{}*+?|^$\`) || strings.Contains(target, "$")
}

// checkPattern reads it as the proxy will.
func checkPattern(path string) error {
	if err := table.Prepare(&schema.Path{Options: &schema.Options{PathPattern: path}}).Err; err != nil {
		return fmt.Errorf("%q is not a regular expression of RE2 that may be used: %w", path, err)
	}
	return nil
}

// decodedPattern is a regular expression with the escapes of URLs in it as the text that they stand
// for: requests are compared decoded. What is no escape of UTF-8 stays.
func decodedPattern(path string) string {
	return regexp.MustCompile(`(?:%[0-9A-Fa-f]{2})+`).ReplaceAllStringFunc(path, func(s string) string {
		text, err := url.PathUnescape(s)
		if err != nil || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			return s
		}
		return regexp.QuoteMeta(text)
	})
}
