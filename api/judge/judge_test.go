// Package judge puts our definitions to the API server's own checks. It is a module of its
// own, so that what an API server is made of does not reach the product.
package judge

import (
	"math"
	"os"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

// definition is ours as the API server has it in memory, and its only schema.
func definition(t *testing.T, kind string) (*apiextensions.CustomResourceDefinition, *schema.Structural) {
	t.Helper()
	raw, err := os.ReadFile("../" + kind + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(raw, &crd); err != nil {
		t.Fatal(err)
	}
	apiextensionsv1.SetDefaults_CustomResourceDefinition(&crd)
	apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&crd.Spec)
	in := &apiextensions.CustomResourceDefinition{}
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&crd, in,
		nil); err != nil {
		t.Fatal(err)
	}
	in.Status.StoredVersions = []string{crd.Spec.Versions[0].Name}
	s := in.Spec.Validation // where all versions have the same
	if s == nil {
		s = in.Spec.Versions[0].Schema
	}
	structural, err := schema.NewStructural(s.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	return in, structural
}

// The API server takes the definitions; that includes the estimated cost of the CEL rules.
func TestTheDefinitionIsTaken(t *testing.T) {
	for _, kind := range []string{"addresspool", "bgppeer", "bgpconfiguration", "bgpadvertisement"} {
		crd, _ := definition(t, kind)
		for _, e := range validation.ValidateCustomResourceDefinition(t.Context(), crd) {
			t.Errorf("%s: %v", kind, e)
		}
	}
}

func TestAddressesByCEL(t *testing.T) {
	_, s := definition(t, "addresspool")
	v := cel.NewValidator(s, true, celconfig.PerCallLimit)
	for address, want := range map[string]string{
		"192.0.2.0/24": "", "192.0.2.1": "", "192.0.2.1-192.0.2.9": "", "192.0.2.1 - 192.0.2.9": "",
		"2001:db8::/64": "", "2001:db8::1": "", "2001:db8::1-2001:db8::9": "",
		"192.0.2.1/24": "host bits", "2001:db8::1/64": "host bits", "192.0.2.1-2001:db8::1": "one family",
		"lan": "is allowed", "a-b": "is allowed", "192.0.2.1-": "is allowed", "1-2-3": "is allowed", "--": "is allowed",
		"192.0.2.0/33": "is allowed",
	} {
		pool := map[string]any{"spec": map[string]any{"addresses": []any{address}}}
		errs, _ := v.Validate(t.Context(), nil, s, pool, nil, math.MaxInt64)
		err := errs.ToAggregate()
		if (want == "") != (err == nil) || err != nil && (!strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), "spec.addresses[0]")) {
			t.Errorf("%q: %v, want %q", address, err, want)
		}
	}
}

func TestDefaults(t *testing.T) {
	_, s := definition(t, "addresspool")
	pool := map[string]any{"spec": map[string]any{"addresses": []any{"192.0.2.1"}}}
	defaulting.Default(pool, s)
	spec := pool["spec"].(map[string]any)
	if spec["autoAssign"] != true || spec["avoidBuggyAddresses"] != false ||
		spec["l2"].(map[string]any)["enabled"] != true || spec["bgp"].(map[string]any)["enabled"] != false {
		t.Errorf("defaults are %v", spec)
	}
}
