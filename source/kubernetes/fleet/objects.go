package fleet

import (
	"context"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"wayleave.dev/writeback"
)

// Kind is a kind of objects that a support bundle has.
type Kind struct {
	group, version, resource string
	// own says that only objects of the installation's namespaces are of interest.
	own bool
}

// String names the kind, such as "services" or "ingresses.networking.k8s.io".
func (k Kind) String() string { return strings.TrimSuffix(k.resource+"."+k.group, ".") }

// Kinds are the kinds of a support bundle. Secrets are not among them.
func Kinds() []Kind {
	return []Kind{
		{"", "v1", "nodes", false}, {"", "v1", "services", false}, {"", "v1", "namespaces", false},
		{"", "v1", "events", false}, {"", "v1", "pods", true}, {"", "v1", "configmaps", true},
		{"apps", "v1", "daemonsets", true}, {"apps", "v1", "deployments", true},
		{"discovery.k8s.io", "v1", "endpointslices", false},
		{"networking.k8s.io", "v1", "networkpolicies", false}, {"networking.k8s.io", "v1", "ingresses", false},
		{"networking.k8s.io", "v1", "ingressclasses", false}, {"networking.k8s.io", "v1", "servicecidrs", false},
		{"coordination.k8s.io", "v1", "leases", true}, {"wayleave.dev", "v1alpha1", "addresspools", false},
	}
}

// Objects lists objects of a kind, at most limit, as they are decoded from JSON. more says that there are others.
// ConfigMaps are those of Wayleave alone.
func (f Fleet) Objects(ctx context.Context, k Kind, limit int64) (list map[string]any, more bool, err error) {
	namespaces := []string{metav1.NamespaceAll}
	if k.own {
		namespaces = []string{f.Namespace}
		if k.resource == "leases" {
			// The writer's Lease is where it always was, whatever the namespace of the installation.
			namespaces = append(namespaces, writeback.PeersNamespace)
			if f.Namespace != writeback.DNSNamespace {
				namespaces = append(namespaces, writeback.DNSNamespace)
			}
		}
	}
	var items []any
	for _, ns := range namespaces {
		l, err := f.Client.Dynamic.Resource(schema.GroupVersionResource{Group: k.group, Version: k.version,
			Resource: k.resource}).Namespace(ns).List(ctx, metav1.ListOptions{Limit: limit})
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", k, err)
		}
		more = more || l.GetContinue() != ""
		for _, o := range l.Items {
			if k.resource != "configmaps" || strings.HasPrefix(o.GetName(), "wayleave") {
				items = append(items, o.Object)
			}
		}
	}
	return map[string]any{"apiVersion": "v1", "kind": "List", "items": items}, more, nil
}
