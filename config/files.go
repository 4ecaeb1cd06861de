package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// The keys of a ConfigMap that hold more than one setting.
const (
	// ownFile is the settings file of Wayleave's manifest and chart.
	ownFile = "config.yaml"
	// operatorFile is the settings file of the ConfigMap wayleave-settings, which no manifest has: it survives each
	// `kubectl apply`. Its values replace those of ownFile.
	operatorFile = "settings.yaml"
	// proxyFile is a KubeProxyConfiguration, under the name that kubeadm gives it.
	proxyFile = "config.conf"
	// proxyAccess is the other key of kubeadm's ConfigMap.
	proxyAccess = "kubeconfig.conf"
)

// Read reads the folder into which a ConfigMap is mounted, or a single settings file.
func Read(path string) (Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Config{}, fmt.Errorf("settings: %w", err)
	}
	if !info.IsDir() {
		raw, err := os.ReadFile(path)
		if err != nil {
			return Config{}, fmt.Errorf("settings: %w", err)
		}
		return Parse(raw)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return Config{}, fmt.Errorf("settings: %w", err)
	}
	data := map[string]string{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") { // the kubelet's links for atomic updates
			continue
		}
		raw, err := os.ReadFile(filepath.Join(path, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the key was just removed
		}
		if err != nil {
			return Config{}, fmt.Errorf("settings: %w", err)
		}
		data[e.Name()] = string(raw)
	}
	return ParseData(data)
}

// ParseData reads the files of the folder: config.yaml, the settings file of the manifest; settings.yaml, the
// operator's, whose values replace those of config.yaml; config.conf, a KubeProxyConfiguration; and settings as keys
// of their own, as in
//
//	mode: "ipvs"
//	ipvs: |
//	  scheduler: "rr"
//
// Otherwise a setting can be in one place only. A default in config.yaml does not count, because that file contains all
// defaults.
func ParseData(data map[string]string) (Config, error) {
	r := newReader()
	if raw, ok := data[ownFile]; ok {
		if err := r.file("", []byte(raw)); err != nil {
			return Config{}, err
		}
		r.dropDefaults()
	}
	if raw, ok := data[operatorFile]; ok {
		if err := r.operator([]byte(raw)); err != nil {
			return Config{}, err
		}
		r.dropDefaults() // it may be a copy of a whole config.yaml
	}
	if raw, ok := data[proxyFile]; ok {
		if err := r.kubeProxy([]byte(raw)); err != nil {
			return Config{}, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(data)) {
		switch name {
		case ownFile, operatorFile, proxyFile:
			continue
		case proxyAccess:
			r.unused = append(r.unused, proxyAccess+": not used; Wayleave has its own service account")
			continue
		}
		var v any
		if err := yaml.UnmarshalStrict([]byte(data[name]), &v); err != nil {
			r.errs = append(r.errs, fmt.Errorf("settings: %s: not YAML: %w", name, err))
			continue
		}
		r.take("", "the ConfigMap's key "+name, map[string]any{name: v})
	}
	return r.config()
}

// value is a value that was found for a setting.
type value struct {
	v any
	// in is the file or key that contains it, empty for config.yaml; at is the key there.
	in, at string
}

func (f value) place() string {
	if f.in == "" {
		return ownFile
	}
	return f.in
}

// reader collects settings from all places.
type reader struct {
	table  []setting
	found  map[string]value
	unused []string
	errs   []error
	// newer says that the file is of a later version, whose keys this one cannot know.
	newer bool
}

func newReader() *reader { return &reader{table: settings(), found: map[string]value{}} }

// file reads a settings file.
func (r *reader) file(in string, raw []byte) error {
	tree := map[string]any{}
	if err := yaml.UnmarshalStrict(raw, &tree); err != nil {
		return fmt.Errorf("settings: not YAML: %w", err)
	}
	r.newer = r.isNewer(in, tree)
	r.take("", in, tree)
	r.newer = false
	return nil
}

// isNewer removes the key settingsVersion, and reports whether it is of a later version of Wayleave than this one.
func (r *reader) isNewer(in string, tree map[string]any) bool {
	v, ok := tree[versionKey]
	if !ok {
		return false
	}
	delete(tree, versionKey)
	n, isNumber := v.(float64)
	if !isNumber || n < 1 || n != float64(int(n)) {
		r.errs = append(r.errs, fmt.Errorf("settings: %s: found %s; a number from 1 is allowed, %d is this version's",
			versionKey, show(v), Version))
		return false
	}
	return n > Version
}

// operator reads the operator's file, whose values replace those that were found before.
func (r *reader) operator(raw []byte) error {
	own := newReader()
	if err := own.file(operatorFile, raw); err != nil {
		return fmt.Errorf("%s: %w", operatorFile, err)
	}
	maps.Copy(r.found, own.found)
	r.unused = append(r.unused, own.unused...)
	r.errs = append(r.errs, own.errs...)
	return nil
}

// take flattens nested maps to settings, and reports unknown keys.
func (r *reader) take(prefix, in string, tree map[string]any) {
	for _, k := range slices.Sorted(maps.Keys(tree)) {
		key, v := prefix+k, tree[k]
		isKey := slices.ContainsFunc(r.table, func(s setting) bool { return s.key == key })
		isGroup := slices.ContainsFunc(r.table, func(s setting) bool { return strings.HasPrefix(s.key, key+".") })
		sub, isMap := v.(map[string]any)
		switch {
		case isKey:
			r.set(key, value{v, in, key})
		case isGroup && isMap:
			r.take(key+".", in, sub)
		case isGroup && v == nil:
		case r.newer && !isGroup:
			r.unused = append(r.unused, fmt.Sprintf("%s: %s: not used: unknown to this version; the file has a later "+
				"%s than %d", value{in: in}.place(), key, versionKey, Version))
		case isGroup:
			r.errs = append(r.errs, fmt.Errorf("settings: %s: found %s; a group of settings is allowed", key, show(v)))
		default:
			r.errs = append(r.errs, fmt.Errorf(
				"settings: %s: unknown setting (not built, or misspelled); allowed here: %s", key,
				strings.Join(keys(prefix, r.table), ", ")))
		}
	}
}

// set records a value, and reports a different one from another place.
func (r *reader) set(key string, v value) {
	if old, ok := r.found[key]; ok && !reflect.DeepEqual(old.v, v.v) {
		r.errs = append(r.errs, fmt.Errorf("settings: %s: found %s in %s and %s in %s; only one value is allowed", key,
			show(old.v), old.place(), show(v.v), v.place()))
		return
	}
	r.found[key] = v
}

// dropDefaults removes values that equal the defaults.
func (r *reader) dropDefaults() {
	for _, s := range r.table {
		if v, err := s.fallback(); err == nil && reflect.DeepEqual(v, r.found[s.key].v) {
			delete(r.found, s.key)
		}
	}
}

// config checks the collected values. The error lists every invalid key.
func (r *reader) config() (Config, error) {
	c := Config{Unused: r.unused}
	for _, s := range r.table {
		f, ok := r.found[s.key]
		if !ok {
			v, err := s.fallback()
			if err != nil {
				r.errs = append(r.errs, fmt.Errorf("%s: default: %w", s.key, err))
				continue
			}
			f = value{v: v, at: s.key}
		}
		if err := s.set(&c, f.v); err != nil {
			where := f.at
			if f.in == proxyFile {
				where = proxyFile + ": " + f.at
			}
			r.errs = append(r.errs, fmt.Errorf("settings: %s: found %s; %w", where, show(f.v), err))
		}
	}
	if c.Routing == "bgp" && !c.BGP.Enabled && len(r.errs) == 0 {
		r.errs = append(r.errs, errors.New(`settings: routing: found "bgp"; that needs bgp.enabled: true`))
	}
	if err := c.checkEncryption(); err != nil && len(r.errs) == 0 {
		r.errs = append(r.errs, err)
	}
	slices.SortFunc(r.errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return c, errors.Join(r.errs...)
}
