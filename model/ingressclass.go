package model

import (
	"iter"
	"time"
)

// IngressClass is what Wayleave uses of an IngressClass (networking.k8s.io/v1).
type IngressClass struct {
	Name    string
	Created time.Time
	// Controller is who serves the class.
	Controller string
	// Default makes it the class of Ingresses without one.
	Default bool
}

var ingressClasses = describe(descriptor[*IngressClass]{kind: IngressClassKind, label: "IngressClass",
	name: func(c *IngressClass) Name { return Name{Name: c.Name} }})

// PutIngressClass sets a class; the store owns it from now on.
func (w *Writer) PutIngressClass(o *IngressClass) { put(w, ingressClasses, o) }

// IngressClass returns the class of that name.
func (v Snapshot) IngressClass(name string) (*IngressClass, bool) {
	return get(v, ingressClasses, Name{Name: name})
}

// IngressClasses yields all classes.
func (v Snapshot) IngressClasses() iter.Seq[*IngressClass] { return all(v, ingressClasses) }
