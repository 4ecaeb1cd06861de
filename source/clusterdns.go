package source

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The Service of the cluster DNS, by its conventional name, and what marks Wayleave's objects.
const (
	DNSNamespace = metav1.NamespaceSystem
	DNSName      = "kube-dns"
	// PreviousSpec is an annotation with the spec that the Service had before Wayleave took it over.
	PreviousSpec = "wayleave.dev/previous-spec"
	// ManagedBy and Wayleave are the label of objects that Wayleave has created.
	ManagedBy = "app.kubernetes.io/managed-by"
	Wayleave  = "wayleave"
)

// OwnDNS reports whether Wayleave has created the Service of the cluster DNS or taken it over. That stays so when a
// manifest of another DNS server is applied over it: the marks are no part of such manifests.
func OwnDNS(in *corev1.Service) bool {
	return in.Labels[ManagedBy] == Wayleave || in.Annotations[PreviousSpec] != "" ||
		in.Spec.Selector["app.kubernetes.io/name"] == Wayleave
}

// otherDNS reports whether a Service is that of the cluster DNS and not Wayleave's.
func otherDNS(in *corev1.Service) bool {
	return in.Namespace == DNSNamespace && in.Name == DNSName && !OwnDNS(in)
}
