// Package manifest reads the model from YAML files, as `kubectl apply -f` would: for render, explain and tests. It
// applies the API server's defaults and is as strict: an unknown field is an error.
package manifest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"wayleave.dev/api"
	"wayleave.dev/model"
	"wayleave.dev/source"
)

// Read adds the objects of a stream of YAML documents to the store and marks all kinds as synced. file is for
// messages. Problems belong to objects that were read; an error means that a document is not a known object.
func Read(store *model.Store, file string, in io.Reader) ([]model.Problem, error) {
	var problems []model.Problem
	var puts []func(*model.Writer)
	taken := newPlaces(store)
	err := eachDocument(file, in, func(doc []byte) error {
		put, bad, err := document(taken, doc)
		problems = append(problems, bad...)
		puts = append(puts, put...)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = store.Write(func(w *model.Writer) {
		for _, put := range puts {
			put(w)
		}
		taken.make(w)
	})
	if err != nil {
		return nil, err
	}
	store.MarkSynced(model.AllKinds())
	return problems, nil
}

// eachDocument calls read with each document of a YAML file.
func eachDocument(file string, in io.Reader, read func(doc []byte) error) error {
	docs := utilyaml.NewYAMLReader(bufio.NewReader(in))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = read(doc)
		}
		if err != nil {
			return fmt.Errorf("%s: document %d: %w", file, n, err)
		}
	}
}

// notObject says what a document has in place of an object; err is why it could not be read as one.
func notObject(doc []byte, err error) error {
	var found any
	if yaml.Unmarshal(doc, &found) != nil {
		return fmt.Errorf("not YAML: %s", strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "))
	}
	switch found.(type) {
	case string:
		return errors.New("found text; an object with apiVersion and kind is needed")
	case []any:
		return errors.New("found a list; an object with apiVersion and kind is needed, such as one of kind List")
	case map[string]any:
		return fmt.Errorf("apiVersion, kind or metadata: %w", err)
	}
	return fmt.Errorf("found %v; an object with apiVersion and kind is needed", found)
}

// document converts one document, or the items of a List.
func document(at *places, doc []byte) ([]func(*model.Writer), []model.Problem, error) {
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(doc, &meta); err != nil {
		return nil, nil, notObject(doc, err)
	}
	switch meta.APIVersion + " " + meta.Kind {
	case " ":
		if len(bytes.TrimSpace(stripComments(doc))) == 0 {
			return nil, nil, nil
		}
		return nil, nil, errors.New("apiVersion and kind are missing")
	case "v1 List":
		return list(at, doc)
	case "v1 Service":
		return convert(at, doc, source.Service, (*model.Writer).PutService)
	case "discovery.k8s.io/v1 EndpointSlice":
		return convert(at, doc, source.EndpointSlice, (*model.Writer).PutEndpointSlice)
	case "v1 Pod":
		return convert(at, doc, source.Pod, (*model.Writer).PutPod)
	case "v1 Node":
		return convert(at, doc, source.Node, (*model.Writer).PutNode)
	case "v1 Namespace":
		return convert(at, doc, source.Namespace, (*model.Writer).PutNamespace)
	case "networking.k8s.io/v1 NetworkPolicy":
		return convert(at, doc, source.NetworkPolicy, (*model.Writer).PutNetworkPolicy)
	case "networking.k8s.io/v1 Ingress":
		return convert(at, doc, source.Ingress, (*model.Writer).PutIngress)
	case "networking.k8s.io/v1 IngressClass":
		return convert(at, doc, source.IngressClass, (*model.Writer).PutIngressClass)
	case "networking.k8s.io/v1 ServiceCIDR":
		return convert(at, doc, source.ServiceCIDR, (*model.Writer).PutServiceCIDR)
	case "v1 Secret":
		return convert(at, doc, source.Secret, (*model.Writer).PutSecret)
	case "v1 ConfigMap":
		return convert(at, doc, source.ConfigMap, (*model.Writer).PutConfigMap)
	case api.GroupVersion + " " + api.AddressPoolKind:
		return convert(at, doc, source.AddressPool, (*model.Writer).PutAddressPool)
	case api.GroupVersion + " " + api.BGPPeerKind:
		return convert(at, doc, source.BGPPeer, (*model.Writer).PutBGPPeer)
	case api.GroupVersion + " " + api.BGPConfigurationKind:
		return convert(at, doc, source.BGPConfiguration, (*model.Writer).PutBGPConfiguration)
	case api.GroupVersion + " " + api.BGPAdvertisementKind:
		return convert(at, doc, source.BGPAdvertisement, (*model.Writer).PutBGPAdvertisement)
	}
	return nil, nil, fmt.Errorf("kind: %q of apiVersion %q is not used by Wayleave; Service, EndpointSlice, Pod, "+
		"Node, Namespace, NetworkPolicy, Ingress, IngressClass, ServiceCIDR, Secret, ConfigMap, AddressPool, "+
		"BGPPeer, BGPConfiguration and BGPAdvertisement are", meta.Kind, meta.APIVersion)
}

func list(at *places, doc []byte) ([]func(*model.Writer), []model.Problem, error) {
	var l struct {
		Items []any `json:"items"`
	}
	if err := yaml.Unmarshal(doc, &l); err != nil {
		return nil, nil, fmt.Errorf("items: %w", err)
	}
	var puts []func(*model.Writer)
	var problems []model.Problem
	for i, item := range l.Items {
		b, err := yaml.Marshal(item)
		if err != nil {
			return nil, nil, fmt.Errorf("items[%d]: %w", i, err)
		}
		put, bad, err := document(at, b)
		if err != nil {
			return nil, nil, fmt.Errorf("items[%d]: %w", i, err)
		}
		puts, problems = append(puts, put...), append(problems, bad...)
	}
	return puts, problems, nil
}

// defaulted applies the API server's defaults.
func defaulted(at *places, o any) {
	m, ok := o.(metav1.Object)
	if !ok {
		return
	}
	switch o := o.(type) {
	case *corev1.Namespace:
		// The API server sets this label on every namespace (KEP-2161).
		if o.Labels == nil {
			o.Labels = map[string]string{}
		}
		o.Labels[corev1.LabelMetadataName] = o.Name
	case *corev1.Service, *corev1.Pod, *discoveryv1.EndpointSlice, *networkingv1.NetworkPolicy, *networkingv1.Ingress,
		*corev1.Secret, *corev1.ConfigMap:
		if m.GetNamespace() == "" {
			m.SetNamespace(metav1.NamespaceDefault)
		}
		at.namespaces[m.GetNamespace()] = true
		switch o := o.(type) {
		case *corev1.Pod:
			at.give(o)
		case *corev1.Secret:
			for k, v := range o.StringData {
				if o.Data == nil {
					o.Data = map[string][]byte{}
				}
				o.Data[k] = []byte(v)
			}
		}
	}
}

func convert[I, O any](at *places, doc []byte, to func(*I) (*O, []model.Problem), put func(*model.Writer, *O)) (
	[]func(*model.Writer), []model.Problem, error) {
	in := new(I)
	if err := yaml.UnmarshalStrict(doc, in); err != nil {
		return nil, nil, err
	}
	defaulted(at, any(in))
	if m, ok := any(in).(metav1.Object); ok && m.GetName() == "" {
		return nil, nil, errors.New("metadata.name: is missing")
	}
	out, problems := to(in)
	if out == nil {
		return nil, problems, nil
	}
	return []func(*model.Writer){func(w *model.Writer) { put(w, out) }}, problems, nil
}

// stripComments removes whole-line comments and document markers, to distinguish an empty document from one without a
// kind.
func stripComments(doc []byte) []byte {
	var out []byte
	for line := range bytes.Lines(doc) {
		t := bytes.TrimSpace(line)
		if !bytes.HasPrefix(t, []byte("#")) && !bytes.Equal(t, []byte("---")) {
			out = append(out, line...)
		}
	}
	return out
}
