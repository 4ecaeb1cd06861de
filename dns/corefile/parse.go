// Package corefile translates CoreDNS's configuration to Wayleave's settings. Whatever cannot be translated is reported
// by line; nothing is dropped silently.
package corefile

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/coredns/caddy/caddyfile"
)

// directive is a line with the block in braces after it.
type directive struct {
	line  int
	name  string
	args  []string
	block []directive
	// braced means that there are braces, possibly empty.
	braced bool
}

// token is a word; first means that it is the first of its line.
type token struct {
	text  string
	line  int
	first bool
}

// endOfFile is appended as the last word; no Corefile contains it. An unterminated quote includes it.
const endOfFile = "\x00"

// lex splits a Corefile into words, like CoreDNS.
func lex(text string) (out []token, err error) {
	words := caddyfile.NewDispenser("", strings.NewReader(text+"\n"+endOfFile))
	last := 0 // line in which the previous word ended
	for words.Next() {
		word, line := words.Val(), words.Line()
		out = append(out, token{word, line, line > last})
		last = line + strings.Count(word, "\n")
	}
	n := len(out) - 1
	if out[n].text != endOfFile {
		return nil, fmt.Errorf("line %d: a quote has no end", out[n].line)
	}
	return out[:n], nil
}

// parse parses server blocks and snippets: directives whose names are the first zone.
func parse(text string) ([]directive, error) {
	tokens, err := lex(text)
	if err != nil {
		return nil, err
	}
	list, rest, err := block(tokens, 0)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("line %d: a } without a {", rest[0].line)
	}
	return braceless(list), err
}

// braceless gives a server block without braces all directives that follow, as CoreDNS does.
func braceless(list []directive) []directive {
	for i, d := range list {
		if !d.braced && d.name != "import" {
			list[i].block, list[i].braced = list[i+1:], true
			return list[:i+1]
		}
	}
	return list
}

// maxDepth is deeper than any real Corefile.
const maxDepth = 8

// block parses directives up to a closing brace, which it leaves.
func block(tokens []token, depth int) (list []directive, rest []token, err error) {
	if depth > maxDepth {
		return nil, nil, fmt.Errorf("line %d: blocks are nested too deeply", tokens[0].line)
	}
	for len(tokens) > 0 && tokens[0].text != "}" {
		d := directive{line: tokens[0].line, name: tokens[0].text}
		if d.name == "{" {
			return nil, nil, fmt.Errorf("line %d: a { without a name in front of it", d.line)
		}
		tokens = tokens[1:]
		// A comma at the end of a line continues the zones in the next one.
		for len(tokens) > 0 && tokens[0].text != "{" && tokens[0].text != "}" &&
			(!tokens[0].first || depth == 0 && strings.HasSuffix(last(d), ",")) {
			d.args = append(d.args, tokens[0].text)
			tokens = tokens[1:]
		}
		if len(tokens) > 0 && tokens[0].text == "{" && (!tokens[0].first || depth == 0) {
			open := tokens[0].line
			d.braced = true
			if d.block, tokens, err = block(tokens[1:], depth+1); err != nil {
				return nil, nil, err
			}
			if len(tokens) == 0 {
				return nil, nil, fmt.Errorf("line %d: a { has no end", open)
			}
			tokens = tokens[1:]
		}
		list = append(list, d)
	}
	return list, tokens, nil
}

func last(d directive) string {
	if len(d.args) == 0 {
		return d.name
	}
	return d.args[len(d.args)-1]
}

// snippets removes "(name) { … }" from the list, and replaces "import name" by its content, within server blocks and
// in place of them. files are others that may be imported, by their names; a snippet comes first.
func snippets(list []directive, files map[string]string) (servers []directive, err error) {
	known := map[string][]directive{}
	for _, d := range list {
		if name, ok := strings.CutPrefix(d.name, "("); ok && strings.HasSuffix(name, ")") {
			known[strings.TrimSuffix(name, ")")] = d.block
			continue
		}
		servers = append(servers, d)
	}
	n := 0
	if servers, err = expand(servers, &imports{snippets: known, files: files}, &n, 0); err != nil {
		return nil, err
	}
	return servers, nil
}

// imports is what a Corefile may import: snippets, and files by their names.
type imports struct {
	snippets map[string][]directive
	files    map[string]string
}

// find returns the content of a snippet, or of all files that a pattern matches, in order of their names. The lines of
// files are those of the import.
func (i *imports) find(pattern string, line int) (content []directive, ok bool, err error) {
	if content, ok = i.snippets[pattern]; ok {
		return content, true, nil
	}
	for _, name := range slices.Sorted(maps.Keys(i.files)) {
		if match, err := path.Match(path.Base(pattern), name); err != nil || !match {
			continue
		}
		tokens, err := lex(i.files[name])
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", name, err)
		}
		list, rest, err := block(tokens, 0)
		if err == nil && len(rest) > 0 {
			err = fmt.Errorf("line %d: a } without a {", rest[0].line)
		}
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", name, err)
		}
		content, ok = append(content, at(list, line)...), true
	}
	return content, ok, nil
}

// at returns the directives with another line.
func at(list []directive, line int) []directive {
	for i := range list {
		list[i].line, list[i].block = line, at(list[i].block, line)
	}
	return list
}

// maxImports bounds snippets that import others many times.
const maxImports = 1000

func expand(list []directive, known *imports, n *int, depth int) ([]directive, error) {
	var out []directive
	for _, d := range list {
		content, ok := []directive(nil), false
		if d.name == "import" && len(d.args) == 1 {
			var err error
			if content, ok, err = known.find(d.args[0], d.line); err != nil {
				return nil, err
			}
		}
		if !ok {
			var err error
			if d.block, err = expand(d.block, known, n, depth); err != nil {
				return nil, err
			}
			out = append(out, d)
			continue
		}
		if *n++; depth >= maxDepth || *n > maxImports {
			return nil, fmt.Errorf("line %d: import %s: snippets import each other", d.line, d.args[0])
		}
		content, err := expand(content, known, n, depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, content...)
	}
	return out, nil
}
