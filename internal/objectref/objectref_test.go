package objectref

import "testing"

func TestNamesAreReadAlike(t *testing.T) {
	for _, tc := range []struct {
		text, namespace string
		want            Ref
	}{
		{"pod/a/b", "", Ref{Pod, "a", "b"}},
		{"po/a/b", "", Ref{Pod, "a", "b"}},
		{"a/b", "", Ref{Pod, "a", "b"}},
		{"a/b", "x", Ref{Pod, "a", "b"}},
		{"pod/b", "x", Ref{Pod, "x", "b"}},
		{"pod/b", "", Ref{Pod, "pod", "b"}}, // the old spelling in a namespace "pod"
		{"svc/a/b", "", Ref{Service, "a", "b"}},
		{"service/b", "x", Ref{Service, "x", "b"}},
		{"deployment/a/b", "", Ref{Deployment, "a", "b"}},
		{"ds/b", "x", Ref{DaemonSet, "x", "b"}},
		{"node/b", "", Ref{Node, "", "b"}},
	} {
		got, err := Parse(tc.text, tc.namespace, Pod, Service, Deployment, DaemonSet, Node)
		if err != nil || got != tc.want {
			t.Errorf("%s in %q: %v, %v; want %v", tc.text, tc.namespace, got, err, tc.want)
			continue
		}
		again, err := Parse(got.String(), "other", Pod, Service, Deployment, DaemonSet, Node)
		if err != nil || again != got {
			t.Errorf("%s is written as %s, which is read as %v, %v", tc.text, got, again, err)
		}
	}
}

func TestNamesThatAreRefused(t *testing.T) {
	for _, text := range []string{"", "a", "/", "a/", "/b", "pod/a/", "pod//b", "pods/a/b/c", "cat/a/b", "svc/a/b",
		"node/a"} {
		if r, err := Parse(text, "", Pod); err == nil {
			t.Errorf("%q is read as %v", text, r)
		}
	}
}
