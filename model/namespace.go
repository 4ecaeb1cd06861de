package model

import (
	"iter"
)

// Namespace is what Wayleave uses of a Namespace.
type Namespace struct {
	Name   string
	Labels map[string]string
	// UID tells the namespace from a later one of the same name. That of kube-system is
	// the cluster's.
	UID string
	// Leaving ones are being deleted, with all objects in them.
	Leaving bool
}

var namespaces = describe(descriptor[*Namespace]{kind: NamespaceKind, label: "Namespace",
	name: func(n *Namespace) Name { return Name{Name: n.Name} }})

// PutNamespace sets a namespace; the store owns it from now on.
func (w *Writer) PutNamespace(o *Namespace) { put(w, namespaces, o) }

// Namespace returns the namespace of that name.
func (v Snapshot) Namespace(name string) (*Namespace, bool) {
	return get(v, namespaces, Name{Name: name})
}

// Namespaces yields all namespaces.
func (v Snapshot) Namespaces() iter.Seq[*Namespace] { return all(v, namespaces) }
