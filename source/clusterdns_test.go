package source

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWhoseTheClusterDNSIs(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*corev1.Service)
		other  bool
	}{
		{"CoreDNS's", func(*corev1.Service) {}, true},
		{"without a selector", func(s *corev1.Service) { s.Spec.Selector = nil }, true},
		{"another name", func(s *corev1.Service) { s.Name = "coredns" }, false},
		{"another namespace", func(s *corev1.Service) { s.Namespace = "tenant" }, false},
		{"created", func(s *corev1.Service) { s.Labels = map[string]string{ManagedBy: Wayleave} }, false},
		{"taken over", func(s *corev1.Service) { s.Annotations = map[string]string{PreviousSpec: "{}"} }, false},
		{"selects agents", func(s *corev1.Service) {
			s.Spec.Selector = map[string]string{"app.kubernetes.io/name": "wayleave"}
		}, false},
	} {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns"},
			Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.10", Selector: map[string]string{"k8s-app": "kube-dns"}}}
		tc.change(s)
		if out, _ := Service(s); out.OtherDNS != tc.other {
			t.Errorf("%s: %v", tc.name, out.OtherDNS)
		}
	}
	if !KeepsAnnotation(PreviousSpec) {
		t.Error("the source drops the annotation before it is read")
	}
}
