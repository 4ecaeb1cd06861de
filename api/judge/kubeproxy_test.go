package judge

import (
	"flag"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	logsapi "k8s.io/component-base/logs/api/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

var update = flag.Bool("update", false, "write the list of kube-proxy's fields anew")

// The import of kube-proxy's settings is tested with every field of kube-proxy's own type; the list
// is that type's.
func TestFieldsOfKubeProxyAreThoseOfItsType(t *testing.T) {
	const file = "../../config/testdata/kubeproxy-fields.txt"
	lines := fields("", reflect.TypeFor[kubeproxy.KubeProxyConfiguration]())
	slices.Sort(lines)
	want := "# Fields of KubeProxyConfiguration v1alpha1 and their types: made by api/judge from k8s.io/kube-proxy.\n" +
		strings.Join(lines, "\n") + "\n"
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != want {
		t.Errorf("%s is not fresh (go test -update): %v", file, err)
	}
}

func fields(prefix string, t reflect.Type) (out []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, opt, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch kind := kindOf(f.Type); {
		case name == "-":
		case f.Anonymous && (name == "" || opt == "inline"):
			out = append(out, fields(prefix, f.Type)...)
		case kind == "":
			out = append(out, fields(prefix+name+".", f.Type)...)
		default:
			out = append(out, prefix+name+" "+kind)
		}
	}
	return out
}

// kindOf is the type of a value; empty for a group of fields.
func kindOf(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[metav1.Duration](), reflect.TypeFor[*metav1.Duration](),
		reflect.TypeFor[logsapi.TimeOrMetaDuration]():
		return "Duration"
	case reflect.TypeFor[resource.QuantityValue]():
		return "string"
	case reflect.TypeFor[logsapi.VModuleConfiguration]():
		return "vmodule"
	}
	switch t.Kind() {
	case reflect.Struct:
		return ""
	case reflect.Map:
		return "map"
	case reflect.Slice:
		return "[]" + t.Elem().Kind().String()
	case reflect.Pointer:
		return "*" + t.Elem().Kind().String()
	case reflect.Uint32:
		return "int32"
	}
	return t.Kind().String()
}
