package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// Output is the flag -o of a command.
type Output struct{ format format }

// Flag adds -o to a command.
func (o *Output) Flag(c *cobra.Command) {
	o.format = "text"
	c.Flags().VarP(&o.format, "output", "o", "the format: text, json or yaml")
	if err := c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats(),
		cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is not defined: every run of the program fails
	}
}

// OldJSON adds the hidden flag --json of earlier versions, which means -o json.
func (o *Output) OldJSON(c *cobra.Command) {
	c.Flags().BoolFunc("json", "as -o json", func(string) error { return o.format.Set("json") })
	if err := c.Flags().MarkHidden("json"); err != nil {
		panic(err)
	}
}

// IsText reports whether people read the output.
func (o *Output) IsText() bool { return o.format == "text" }

// IsJSON reports whether the output is JSON.
func (o *Output) IsJSON() bool { return o.format == "json" }

// PrintYAML writes a result that is YAML also as text, of one or several documents. In JSON several documents are a
// List of Kubernetes.
func (o *Output) PrintYAML(w io.Writer, text []byte) error {
	if !o.IsJSON() {
		_, err := w.Write(text)
		return err
	}
	var docs []any
	for _, doc := range bytes.Split(append([]byte("\n"), text...), []byte("\n---\n")) {
		var v any
		if err := yaml.Unmarshal(doc, &v); err != nil {
			return fmt.Errorf("output: %w", err)
		}
		if v != nil {
			docs = append(docs, v)
		}
	}
	if len(docs) == 1 {
		return o.Print(w, "", docs[0])
	}
	return o.Print(w, "", map[string]any{"apiVersion": "v1", "kind": "List", "items": docs})
}

// Print writes a result: text as it is, or value as JSON or YAML.
func (o *Output) Print(w io.Writer, text string, value any) error {
	if o.IsText() {
		_, err := io.WriteString(w, text)
		return err
	}
	raw, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	if o.format == "yaml" {
		if raw, err = yaml.JSONToYAML(raw); err != nil {
			return fmt.Errorf("output: %w", err)
		}
	} else {
		raw = append(raw, '\n')
	}
	_, err = w.Write(raw)
	return err
}

// Lines splits text into lines, for results that are text only. They are never null in JSON.
func Lines(text string) []string {
	out := []string{}
	for line := range strings.Lines(text) {
		out = append(out, strings.TrimRight(line, "\r\n"))
	}
	return out
}

func formats() []string { return []string{"text", "json", "yaml"} }

// format implements pflag.Value.
type format string

// String implements pflag.Value.
func (f *format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *format) Type() string { return "text|json|yaml" }

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	if !slices.Contains(formats(), s) {
		return fmt.Errorf("%s are allowed", strings.Join(formats(), ", "))
	}
	*f = format(s)
	return nil
}
