package ingress

import (
	"fmt"
	"slices"
	"strings"
)

// Document is the table of ingress-nginx's annotations for docs/ingress.md, in Markdown.
func Document() string {
	var b strings.Builder
	b.WriteString("| annotation | built | note |\n|---|---|---|\n")
	for _, a := range annotations() {
		built, note := "yes", a.note
		if a.read == nil || a.no {
			built = "no"
			if a.guard {
				note = "closes the paths (503), since it keeps requests out"
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", a.name, built, strings.ReplaceAll(note, "|", `\|`))
	}
	return b.String()
}

// Built says whether an annotation by its whole name does what ingress-nginx does with it,
// or is one of Wayleave's own.
// known is false for names that Wayleave has never heard of.
func Built(key string) (built, known bool) {
	short, ok := strings.CutPrefix(key, nginxPrefix)
	if !ok {
		name, own := strings.CutPrefix(key, ownPrefix)
		known = own && slices.ContainsFunc(ownAnnotations(), func(a annotation) bool { return a.name == name })
		return known, known
	}
	for _, a := range annotations() {
		if a.name == short {
			return a.read != nil && !a.no, true
		}
	}
	return false, false
}
