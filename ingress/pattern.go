package ingress

import (
	"fmt"
	"strings"

	"wayleave.dev/proxy/table"
)

// hasPattern says whether a path is to be read as a regular expression: where an Ingress
// asks for that, and the path is more than a name.
func hasPattern(path, target string) bool {
	return strings.ContainsAny(path, `()[]{}*+?|^$\`) || strings.Contains(target, "$")
}

// checkPattern reads it as the proxy will.
func checkPattern(path string) error {
	if err := table.Prepare(&table.Path{Options: &table.Options{PathPattern: path}}).Err; err != nil {
		return fmt.Errorf("%q is not a regular expression of RE2 that may be used: %w", path, err)
	}
	return nil
}
