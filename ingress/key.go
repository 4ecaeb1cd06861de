package ingress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/reconcile"
)

// Kind is what a Key names.
type Kind uint8

// The kinds of keys. ObjectKey has no plan, only the problems of an Ingress.
const (
	HostKey Kind = iota
	BackendKey
	CertificateKey
	ObjectKey
)

// Key names a plan: a host name, a backend "namespace/service:port", a certificate
// "namespace/secret", or an Ingress "namespace/name".
type Key struct {
	Kind Kind
	Name string
}

// String returns "host shop.example".
func (k Key) String() string {
	return [...]string{"host", "backend", "certificate", "Ingress"}[k.Kind] + " " + k.Name
}

// Plan is the plan of a key, of the key's kind.
type Plan struct {
	Host        *schema.Host
	Backend     *schema.Backend
	Certificate *schema.Certificate
}

// Equal compares two plans of a key.
func Equal(a, b Plan) bool {
	switch {
	case a.Backend != nil && b.Backend != nil:
		return a.Backend.Key == b.Backend.Key && slices.Equal(a.Backend.Endpoints, b.Backend.Endpoints)
	case a.Certificate != nil && b.Certificate != nil:
		return a.Certificate.Key == b.Certificate.Key && bytes.Equal(a.Certificate.Chain, b.Certificate.Chain) &&
			bytes.Equal(a.Certificate.Priv, b.Certificate.Priv) &&
			bytes.Equal(a.Certificate.CA, b.Certificate.CA) && bytes.Equal(a.Certificate.CRL, b.Certificate.CRL)
	}
	return reflect.DeepEqual(a.Host, b.Host)
}

// Target splits plans into those of the proxies' feed: certificates and backends first, because hosts refer to them.
type Target struct {
	Hosts        reconcile.Target[string, schema.Host]
	Backends     reconcile.Target[string, schema.Backend]
	Certificates reconcile.Target[string, schema.Certificate]
}

var (
	_ reconcile.Planner[Key, Plan] = (*Planner)(nil)
	_ reconcile.Target[Key, Plan]  = Target{}
)

// split holds plans by kind.
type split struct {
	hosts        map[string]schema.Host
	backends     map[string]schema.Backend
	certificates map[string]schema.Certificate
}

func sorted(plans map[Key]Plan) split {
	s := split{map[string]schema.Host{}, map[string]schema.Backend{}, map[string]schema.Certificate{}}
	for k, p := range plans {
		switch {
		case p.Host != nil:
			s.hosts[k.Name] = *p.Host
		case p.Backend != nil:
			s.backends[k.Name] = *p.Backend
		case p.Certificate != nil:
			s.certificates[k.Name] = *p.Certificate
		}
	}
	return s
}

// Sync implements reconcile.Target.
func (t Target) Sync(ctx context.Context, plans map[Key]Plan) error {
	s := sorted(plans)
	return errors.Join(t.Certificates.Sync(ctx, s.certificates), t.Backends.Sync(ctx, s.backends),
		t.Hosts.Sync(ctx, s.hosts))
}

// Apply implements reconcile.Target. Kinds without changes are skipped.
func (t Target) Apply(ctx context.Context, set map[Key]Plan, del []Key) error {
	s, gone := sorted(set), map[Kind][]string{}
	for _, k := range del {
		gone[k.Kind] = append(gone[k.Kind], k.Name)
	}
	failed := reconcile.KeyErrors[Key]{}
	var errs []error
	note := func(kind Kind, err error) {
		var byKey reconcile.KeyErrors[string]
		if errors.As(err, &byKey) {
			for name, err := range byKey {
				failed[Key{kind, name}] = err
			}
		} else if err != nil {
			errs = append(errs, err)
		}
	}
	if len(s.certificates)+len(gone[CertificateKey]) > 0 {
		note(CertificateKey, t.Certificates.Apply(ctx, s.certificates, gone[CertificateKey]))
	}
	if len(s.backends)+len(gone[BackendKey]) > 0 {
		note(BackendKey, t.Backends.Apply(ctx, s.backends, gone[BackendKey]))
	}
	if len(s.hosts)+len(gone[HostKey]) > 0 {
		note(HostKey, t.Hosts.Apply(ctx, s.hosts, gone[HostKey]))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// backendKey returns the key of a Service's port.
func backendKey(service model.Name, port uint16) string { return fmt.Sprintf("%s:%d", service, port) }
