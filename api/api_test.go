package api

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// properties walks an OpenAPI schema and lists the paths of its fields.
func properties(s map[string]any, at string) (out []string) {
	props, _ := s["properties"].(map[string]any)
	for name, v := range props {
		p := v.(map[string]any)
		out = append(out, at+name)
		if items, ok := p["items"].(map[string]any); ok {
			p = items
		}
		out = append(out, properties(p, at+name+".")...)
	}
	return out
}

// fields lists the JSON paths of a Go type in the same way.
func fields(t reflect.Type, at string) (out []string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t.Name() == "Time" || t.Name() == "Duration" {
		return nil
	}
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if options == "inline" {
			out = append(out, fields(f.Type, at)...)
			continue
		}
		out = append(out, at+name)
		out = append(out, fields(f.Type, at+name+".")...)
	}
	return out
}

// What the definition has and the types have not would be lost, and the other way round.
func TestTheDefinitionHasTheFieldsOfTheTypes(t *testing.T) {
	type types struct{ spec, status reflect.Type }
	of := map[string]types{
		AddressPoolKind: {reflect.TypeFor[AddressPoolSpec](), reflect.TypeFor[AddressPoolStatus]()},
		BGPPeerKind:     {reflect.TypeFor[BGPPeerSpec](), reflect.TypeFor[BGPPeerStatus]()},
		BGPConfigurationKind: {reflect.TypeFor[BGPConfigurationSpec](),
			reflect.TypeFor[BGPConfigurationStatus]()},
		BGPAdvertisementKind: {reflect.TypeFor[BGPAdvertisementSpec](),
			reflect.TypeFor[BGPAdvertisementStatus]()},
	}
	for _, d := range append(BGPDefinitions(), Definition{AddressPoolKind, AddressPools, AddressPoolCRD}) {
		var crd map[string]any
		if err := yaml.UnmarshalStrict(d.YAML, &crd); err != nil {
			t.Fatal(err)
		}
		spec := crd["spec"].(map[string]any)
		version := spec["versions"].([]any)[0].(map[string]any)
		if spec["group"] != Group || version["name"] != Version ||
			spec["names"].(map[string]any)["plural"] != d.Resource ||
			spec["names"].(map[string]any)["kind"] != d.Kind {
			t.Errorf("the names differ: %v", spec["names"])
		}
		schema := version["schema"].(map[string]any)["openAPIV3Schema"].(map[string]any)["properties"].(map[string]any)
		for part, typ := range map[string]reflect.Type{"spec": of[d.Kind].spec, "status": of[d.Kind].status} {
			got, want := properties(schema[part].(map[string]any), part+"."), fields(typ, part+".")
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s %s:\nthe definition has %v\nthe type has       %v", d.Kind, part, got, want)
			}
		}
	}
}
