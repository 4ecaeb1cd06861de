package install

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"

	"wayleave.dev/config"
)

const (
	// settingsKey is the key of the settings file, in both ConfigMaps.
	settingsKey = "config.yaml"
	// operatorsMap is the ConfigMap with the operator's settings.
	operatorsMap = "wayleave-settings"
	versionKey   = "settingsVersion"
)

// Settings says what becomes of the settings in the cluster.
type Settings struct {
	// Kept are values that were changed in the ConfigMap wayleave, and stay. Dropped are those of keys that the new
	// version does not have. Defaults are defaults that differ between the versions, of settings that nobody has set.
	// Meaning are settings in use that the new version reads in another way. Ignored are keys of wayleave-settings
	// that the new version does not know, and does not use.
	Kept     []string `json:"kept,omitempty"`
	Dropped  []string `json:"dropped,omitempty"`
	Defaults []string `json:"defaults,omitempty"`
	Meaning  []string `json:"meaning,omitempty"`
	Ignored  []string `json:"ignored,omitempty"`
}

// values are settings by key, as in "dns.hosts".
type values map[string]any

// readValues flattens a settings file. isLeaf says of a map whether it is a value.
func readValues(text string, isLeaf func(key string) bool) (values, error) {
	tree := map[string]any{}
	if err := yaml.UnmarshalStrict([]byte(text), &tree); err != nil {
		return nil, fmt.Errorf("not YAML: %w", err)
	}
	out := values{}
	out.flatten("", tree, isLeaf)
	return out, nil
}

func (v values) flatten(prefix string, tree map[string]any, isLeaf func(string) bool) {
	for name, item := range tree {
		key := prefix + name
		if sub, ok := item.(map[string]any); ok && len(sub) > 0 && !isLeaf(key) {
			v.flatten(key+".", sub, isLeaf)
			continue
		}
		v[key] = item
	}
}

// fileVersion returns the settingsVersion of a file, 1 if it names none.
func (v values) fileVersion() int {
	n, ok := v[versionKey].(float64)
	if !ok {
		return 1
	}
	return int(n)
}

// edit holds the settings files between which an upgrade decides: those of the manifests before and after, as they were
// released, and those of the cluster.
type edit struct {
	base, live, target, operator values
	text                         string
}

// newEdit reads settings files. base and live may be empty: nothing is installed, or nothing is known of it.
func newEdit(base, live, target, operator string) (*edit, error) {
	first, err := readValues(target, config.Has)
	if err != nil {
		return nil, fmt.Errorf("settings of the new version: %w", err)
	}
	isLeaf := func(key string) bool { _, ok := first[key]; return ok || config.Has(key) }
	e := &edit{target: first, text: target}
	for _, f := range []struct {
		of   string
		text string
		to   *values
	}{{"the version before", base, &e.base}, {"ConfigMap wayleave", live, &e.live},
		{"ConfigMap " + operatorsMap, operator,
			&e.operator}} {
		if *f.to, err = readValues(f.text, isLeaf); err != nil {
			return nil, fmt.Errorf("settings of %s: %w", f.of, err)
		}
	}
	if base == "" {
		e.base = e.target // nothing is known: what differs from the new defaults counts as edited
	}
	return e, nil
}

// edited returns the keys that were changed in the ConfigMap wayleave since the manifest was applied.
func (e *edit) edited() (out []string) {
	for _, key := range slices.Sorted(maps.Keys(e.live)) {
		if key != versionKey && !reflect.DeepEqual(e.live[key], e.base[key]) {
			out = append(out, key)
		}
	}
	return out
}

// merge returns the settings file of the new version with the values that were edited, and what becomes of each
// setting.
func (e *edit) merge() (string, Settings, error) {
	var s Settings
	set := values{}
	for _, key := range e.edited() {
		line := fmt.Sprintf("%s: %s", key, show(e.live[key]))
		if _, known := e.target[key]; !known {
			s.Dropped = append(s.Dropped, line)
			continue
		}
		s.Kept = append(s.Kept, line)
		if !reflect.DeepEqual(e.live[key], e.target[key]) {
			set[key] = e.live[key]
		}
	}
	for _, key := range slices.Sorted(maps.Keys(e.target)) {
		was, had := e.base[key]
		_, inUse := e.operator[key]
		if key != versionKey && had && !inUse && !slices.Contains(e.edited(), key) &&
			!reflect.DeepEqual(was, e.target[key]) {
			s.Defaults = append(s.Defaults, fmt.Sprintf("%s: %s, before %s", key, show(e.target[key]), show(was)))
		}
	}
	ignored, err := e.unknown()
	if err != nil {
		return "", s, err
	}
	s.Ignored = ignored
	s.Meaning = e.meaning(config.Changes())
	text, err := setValues(e.text, set)
	return text, s, err
}

// unknown returns the operator's keys that the new version does not know. It is an error if its agents would not start:
// without a later settingsVersion in the file.
func (e *edit) unknown() (out []string, err error) {
	for _, key := range slices.Sorted(maps.Keys(e.operator)) {
		if _, ok := e.target[key]; !ok && key != versionKey {
			out = append(out, key)
		}
	}
	to := e.target.fileVersion()
	if len(out) == 0 || e.operator.fileVersion() > to {
		return out, nil
	}
	return nil,
		fmt.Errorf("ConfigMap %s: %s: unknown to the version that would be installed, whose agents would not start; "+
			"remove the keys, or set `%s: %d` in the file if a later version has them", operatorsMap,
			strings.Join(out, ", "),
			versionKey, max(to+1, config.Version))
}

// meaning lists settings in use that changed their meaning between the versions, in either direction.
func (e *edit) meaning(changes []config.Change) (out []string) {
	from, to := e.base.fileVersion(), e.target.fileVersion()
	for _, c := range changes {
		if c.Version <= min(from, to) || c.Version > max(from, to) {
			continue
		}
		_, own := e.operator[c.Key]
		if own || slices.Contains(e.edited(), c.Key) {
			out = append(out, c.Key+": "+c.What)
		}
	}
	return out
}

// parse reads the settings as the agents of this program's version do.
func (e *edit) parse(text, operator string) (config.Config, error) {
	data := map[string]string{settingsKey: text}
	if operator != "" {
		data["settings.yaml"] = operator
	}
	return config.ParseData(data)
}

// setValues replaces values in a settings file, and keeps its comments.
func setValues(text string, set values) (string, error) {
	if len(set) == 0 {
		return text, nil
	}
	var doc yamlv3.Node
	if err := yamlv3.Unmarshal([]byte(text), &doc); err != nil {
		return "", fmt.Errorf("settings: %w", err)
	}
	if len(doc.Content) != 1 {
		return "", errors.New("settings: not one YAML document")
	}
	for _, key := range slices.Sorted(maps.Keys(set)) {
		if err := setNode(doc.Content[0], "", key, set[key]); err != nil {
			return "", fmt.Errorf("settings: %w", err)
		}
	}
	var out bytes.Buffer
	enc := yamlv3.NewEncoder(&out)
	enc.SetIndent(2)
	if err := cmp.Or(enc.Encode(&doc), enc.Close()); err != nil {
		return "", fmt.Errorf("settings: %w", err)
	}
	return out.String(), nil
}

// setNode replaces the value of a key in a mapping and those below it.
func setNode(n *yamlv3.Node, prefix, key string, value any) error {
	for i := 0; n.Kind == yamlv3.MappingNode && i+1 < len(n.Content); i += 2 {
		name := prefix + n.Content[i].Value
		switch {
		case name == key:
			var to yamlv3.Node
			if err := to.Encode(value); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			to.LineComment = n.Content[i+1].LineComment
			n.Content[i+1] = &to
			return nil
		case strings.HasPrefix(key, name+"."):
			return setNode(n.Content[i+1], name+".", key, value)
		}
	}
	return fmt.Errorf("%s: not in the file", key)
}

func show(v any) string {
	raw, err := yaml.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSpace(string(raw))
}
