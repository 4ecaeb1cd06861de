package writeback

import (
	"log/slog"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"wayleave.dev/model"
)

// `kubectl describe ingress` finds Events by name, namespace, kind and UID of the object,
// and shows type, reason, age, source and message: each is there.
func TestEventsOfAnIngressAreWhatDescribeLooksFor(t *testing.T) {
	c := fake.NewClientset(&networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "shop",
		Name: "main", UID: "u1"}})
	p := NewProblems(slog.New(slog.DiscardHandler))
	for _, q := range []model.Problem{
		{Field: "spec.tls[0].secretName", Reason: "it has ended", Event: "CertificateExpired"},
		{Field: "spec.rules[0]", Reason: "it is wrong"},
	} {
		q.Kind, q.Object = "Ingress", model.Name{Namespace: "shop", Name: "main"}
		if err := p.write(t.Context(), c, "node1", q); err != nil {
			t.Fatal(err)
		}
	}
	l, err := c.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(l.Items) != 2 {
		t.Fatalf("%d Events: %v", len(l.Items), err)
	}
	want := map[string]string{"CertificateExpired": "spec.tls[0].secretName: it has ended",
		"Invalid": "spec.rules[0]: it is wrong"}
	for _, e := range l.Items {
		if o := e.InvolvedObject; o.Kind != "Ingress" || o.Namespace != "shop" || o.Name != "main" || o.UID != "u1" ||
			o.APIVersion != "networking.k8s.io/v1" {
			t.Errorf("the Event is about %+v", o)
		}
		if e.Type != corev1.EventTypeWarning || want[e.Reason] != e.Message || e.Source.Component != "wayleave" ||
			e.Source.Host != "node1" ||
			e.FirstTimestamp.IsZero() || e.LastTimestamp.IsZero() || e.Count != 1 || e.ReportingController == "" {
			t.Errorf("%+v", e)
		}
	}
}
