package regex

import (
	"fmt"
	"regexp"
	"regexp/syntax"
)

// MaxLength is the longest expression in bytes, and maxInstructions bounds its compiled form. RE2 takes a time that
// grows with both the instructions and the text.
const (
	MaxLength       = 1024
	maxInstructions = 1000
)

// Program is a compiled regular expression, and its number of instructions.
type Program struct {
	Regexp *regexp.Regexp
	Steps  int
}

// CompilePath compiles the pattern of a path: it matches from the start of the path, case-insensitively.
func CompilePath(s string) (*Program, error) { return Compile(s, `(?is)^`) }

// Compile compiles an expression after a prefix of flags, within the bounds.
func Compile(s, prefix string) (*Program, error) {
	if len(s) > MaxLength {
		return nil, fmt.Errorf("a regular expression has %d bytes; allowed: %d", len(s), MaxLength)
	}
	// The group keeps alternatives of s after the prefix.
	whole := prefix + `(?:` + s + `)`
	if _, err := syntax.Parse(s, syntax.Perl); err != nil {
		return nil, err
	}
	tree, err := syntax.Parse(whole, syntax.Perl)
	if err != nil {
		return nil, err
	}
	prog, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return nil, err
	}
	if len(prog.Inst) > maxInstructions {
		return nil, fmt.Errorf("regular expression %q has %d instructions; allowed: %d", s, len(prog.Inst),
			maxInstructions)
	}
	re, err := regexp.Compile(whole)
	return &Program{re, len(prog.Inst)}, err
}
