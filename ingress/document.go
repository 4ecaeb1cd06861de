package ingress

import (
	"fmt"
	"slices"
	"strings"
)

// Document returns the table of ingress-nginx's annotations for docs/ingress-annotations.md, in Markdown, with
// counts. listed are the names in ingress-nginx's documentation.
func Document(listed []string) string {
	var b strings.Builder
	all := annotations()
	built, not := 0, 0
	var guards []string
	for _, a := range all {
		switch {
		case !slices.Contains(listed, a.name):
		case a.built():
			built++
		default:
			not++
			if a.guard {
				guards = append(guards, a.name)
			}
		}
	}
	fmt.Fprintf(&b, "Of %d annotations that ingress-nginx's documentation lists, %d are built and %d are not. Of "+
		"these, %d keep requests out and close their paths: %s. The table has %d more that its code or older "+
		"versions have.\n\n",
		len(listed), built, not, len(guards), strings.Join(guards, ", "), len(all)-built-not)
	b.WriteString("| annotation | built | note |\n|---|---|---|\n")
	for _, a := range all {
		state := "yes"
		if !a.built() {
			state = "no"
		}
		name := a.name
		if !slices.Contains(listed, a.name) {
			name += " (not listed)"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, state, strings.ReplaceAll(a.note, "|", `\|`))
	}
	b.WriteString("\nWayleave's own, below `ingress.wayleave.dev/`:\n\n| annotation | note |\n|---|---|\n")
	for _, a := range ownAnnotations() {
		fmt.Fprintf(&b, "| %s | %s |\n", a.name, a.note)
	}
	return b.String()
}

// built reports whether the annotation does what ingress-nginx does.
func (a *annotation) built() bool { return a.read != nil && !a.no }

// Built reports whether an annotation, by its full name, does what ingress-nginx does, or is one of Wayleave's own.
// known is false for unknown names.
func Built(key string) (built, known bool) {
	short, ok := strings.CutPrefix(key, nginxPrefix)
	if !ok {
		name, own := strings.CutPrefix(key, ownPrefix)
		known = own && slices.ContainsFunc(ownAnnotations(), func(a annotation) bool { return a.name == name })
		return known, known
	}
	for _, a := range annotations() {
		if a.name == short {
			return a.built(), true
		}
	}
	return false, false
}
