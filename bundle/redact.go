package bundle

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
)

// hidden replaces what is secret.
const hidden = "[redacted]"

// secrets are texts that are secret wherever they are: private keys, tokens, passwords in URLs, header fields, flags
// and settings. What stands before the secret is kept.
var secrets = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`),
		hidden},
	// base64 of "-----BEGIN", as in the data of a Secret or a kubeconfig.
	{regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/=]+`), hidden},
	{regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.?[A-Za-z0-9_-]*`), hidden},
	{regexp.MustCompile(`(?i)\b(basic|bearer|digest|negotiate)(\s+)["']?[A-Za-z0-9+/=._~-]{6,}`), "$1$2" + hidden},
	{regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s:@"']*:[^/\s@"']+@`), "${1}" + hidden + "@"},
	// Hashes of htpasswd and shadow files.
	{regexp.MustCompile(`\$(apr1|1|2[abxy]?|5|6|y)\$[A-Za-z0-9./$=,]{10,}|\{SHA\}[A-Za-z0-9+/=]+`), hidden},
}

// secretValue is a key that says that its value is secret, and the value: quoted, a word, or in YAML a block, a list or
// a word on the next line.
var secretValue = regexp.MustCompile(`(?i)([a-z0-9_.-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|` +
	`private[_-]?key|access[_-]?key|credential|authorization|cookie|session[_-]?id|signature)s?` +
	`\\?["']?[ \t]*[:=][ \t]*\\?)` +
	`("(?:[^"\\]|\\.)*"|'[^']*'|[|>][+-]?\d?[ \t]*(?:\n[ \t]+[^\n]*)+|(?:\n[ \t]*- [^\n:]+)+|` +
	`\n[ \t]+[^\s:]+[ \t]*(?:\n|\z)|[^\s,;&"'}\]]+)`)

// Redact replaces secrets in a text. It also hides some texts that are none, such as the name of a token.
func Redact(text []byte) []byte {
	for _, s := range secrets {
		text = s.re.ReplaceAll(text, []byte(s.with))
	}
	return secretValue.ReplaceAllFunc(text, func(match []byte) []byte {
		parts := secretValue.FindSubmatch(match)
		switch string(parts[2]) {
		case "true", "false", "null":
			return match
		}
		out := append(slices.Clone(parts[1]), hidden...)
		if bytes.HasSuffix(parts[2], []byte("\n")) {
			out = append(out, '\n')
		}
		return out
	})
}

// redactJSON redacts each text of a JSON document, in which lines are escaped, and then the document. What is no JSON,
// as it was cut, is redacted as a text.
func redactJSON(raw []byte) []byte {
	var v any
	if json.Unmarshal(raw, &v) == nil {
		if again, err := json.MarshalIndent(redactStrings(v), "", "  "); err == nil {
			raw = again
		}
	}
	return Redact(raw)
}

// redactStrings redacts the texts of a value that was decoded from JSON, in place where it can.
func redactStrings(v any) any {
	switch v := v.(type) {
	case string:
		return string(Redact([]byte(v)))
	case map[string]any:
		for key, below := range v {
			v[key] = redactStrings(below)
		}
	case []any:
		for i, below := range v {
			v[i] = redactStrings(below)
		}
	}
	return v
}

// Scrub removes from an object, as decoded from JSON, what is secret by its place: values of environment variables,
// data of Secrets, the copy of the object that kubectl keeps, annotations that hold configuration of a server, and
// sealed keys.
func Scrub(object map[string]any) {
	if object["kind"] == "Secret" {
		for _, field := range []string{"data", "stringData"} {
			if _, ok := object[field]; ok {
				object[field] = hidden
			}
		}
	}
	scrub(object)
}

// kept are the annotations of a Lease that agents write for people.
var keptOfLease = map[string]bool{"wayleave.dev/problems": true, "wayleave.dev/kubelet": true}

func scrub(v any) {
	switch v := v.(type) {
	case map[string]any:
		scrubMeta(v)
		for key, below := range v {
			switch list, isList := below.([]any); {
			case key == "env" && isList:
				hideValues(list)
			case key == "managedFields":
				delete(v, key)
			case key == "caBundle":
				v[key] = hidden
			}
			scrub(v[key])
		}
	case []any:
		for _, below := range v {
			scrub(below)
		}
	}
}

func hideValues(env []any) {
	for _, e := range env {
		if e, ok := e.(map[string]any); ok && e["value"] != nil {
			e["value"] = hidden
		}
	}
}

// scrubMeta hides annotations of an object, if v is one.
func scrubMeta(v map[string]any) {
	meta, ok := v["metadata"].(map[string]any)
	if !ok {
		return
	}
	annotations, ok := meta["annotations"].(map[string]any)
	if !ok {
		return
	}
	for name := range annotations {
		switch {
		case name == "kubectl.kubernetes.io/last-applied-configuration", bytes.Contains([]byte(name),
			[]byte("snippet")),
			bytes.Contains([]byte(name), []byte("proxy-set-headers")),
			v["kind"] == "Lease" && !keptOfLease[name]:
			annotations[name] = hidden
		}
	}
}
