// Package fakeapi is a Kubernetes API server with the functions that Wayleave and the programs it is compared with
// need: list and watch of a few kinds, also by streaming (KEP-3157), and get by name. It is fast, and treats all
// measured programs alike. It is for tests.
package fakeapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kind is a kind of objects.
type kind struct{ apiVersion, name, list string }

// Server is the API server. Use New.
type Server struct {
	mu      sync.Mutex
	changed *sync.Cond
	version uint64
	kinds   map[string]*state
	closed  bool
}

// state holds the objects of a kind and all their events.
type state struct {
	kind
	objects map[string]json.RawMessage
	events  []event
}

type event struct {
	version uint64
	key     string // "namespace/name"
	line    []byte // in the watch's format
}

// New returns an empty server.
func New() *Server {
	s := &Server{version: 1, kinds: map[string]*state{}}
	s.changed = sync.NewCond(&s.mu)
	for path, k := range map[string]kind{
		"/api/v1/services":                          {"v1", "Service", "ServiceList"},
		"/apis/discovery.k8s.io/v1/endpointslices":  {"discovery.k8s.io/v1", "EndpointSlice", "EndpointSliceList"},
		"/api/v1/nodes":                             {"v1", "Node", "NodeList"},
		"/api/v1/namespaces":                        {"v1", "Namespace", "NamespaceList"},
		"/api/v1/pods":                              {"v1", "Pod", "PodList"},
		"/api/v1/secrets":                           {"v1", "Secret", "SecretList"},
		"/apis/networking.k8s.io/v1/servicecidrs":   {"networking.k8s.io/v1", "ServiceCIDR", "ServiceCIDRList"},
		"/apis/networking.k8s.io/v1/ingresses":      {"networking.k8s.io/v1", "Ingress", "IngressList"},
		"/apis/networking.k8s.io/v1/ingressclasses": {"networking.k8s.io/v1", "IngressClass", "IngressClassList"},
	} {
		s.kinds[path] = &state{kind: k, objects: map[string]json.RawMessage{}}
	}
	return s
}

func path(o any) string {
	switch o.(type) {
	case *corev1.Service:
		return "/api/v1/services"
	case *discoveryv1.EndpointSlice:
		return "/apis/discovery.k8s.io/v1/endpointslices"
	case *corev1.Node:
		return "/api/v1/nodes"
	case *corev1.Namespace:
		return "/api/v1/namespaces"
	case *corev1.Secret:
		return "/api/v1/secrets"
	case *networkingv1.Ingress:
		return "/apis/networking.k8s.io/v1/ingresses"
	case *networkingv1.IngressClass:
		return "/apis/networking.k8s.io/v1/ingressclasses"
	}
	panic(fmt.Sprintf("fakeapi: unsupported kind %T", o))
}

// Put creates or replaces the objects, in one step; watchers see them in order.
func (s *Server) Put(objects ...metav1.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		st := s.kinds[path(o)]
		key := o.GetNamespace() + "/" + o.GetName()
		verb := "MODIFIED"
		if _, ok := st.objects[key]; !ok {
			verb = "ADDED"
		}
		s.version++
		o.SetResourceVersion(fmt.Sprint(s.version))
		raw := st.encode(o)
		st.objects[key] = raw
		st.note(s.version, verb, key, raw)
	}
	s.changed.Broadcast()
}

// Delete removes objects.
func (s *Server) Delete(objects ...metav1.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		st := s.kinds[path(o)]
		s.version++
		o.SetResourceVersion(fmt.Sprint(s.version))
		key := o.GetNamespace() + "/" + o.GetName()
		delete(st.objects, key)
		st.note(s.version, "DELETED", key, st.encode(o))
	}
	s.changed.Broadcast()
}

func (st *state) note(version uint64, verb, key string, raw []byte) {
	line := append([]byte(`{"type":"`+verb+`","object":`), raw...)
	st.events = append(st.events, event{version, key, append(line, '}', '\n')})
}

// encode adds kind and version, which typed objects lack.
func (st *state) encode(o any) json.RawMessage {
	raw, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return append([]byte(fmt.Sprintf(`{"kind":%q,"apiVersion":%q,`, st.name, st.apiVersion)), raw[1:]...)
}

// Serve answers until the listener is closed.
func (s *Server) Serve(l net.Listener) error { return http.Serve(l, s) }

// Close ends all watches.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.changed.Broadcast()
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	path, some := choose(r)
	st, one := s.kinds[path], ""
	if st == nil {
		if i := strings.LastIndexByte(path, '/'); i > 0 {
			st, one = s.kinds[path[:i]], path[i+1:]
		}
	}
	switch {
	case st == nil || r.Method != http.MethodGet:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
	case one != "":
		s.get(w, st, some.namespace+"/"+one)
	case r.URL.Query().Get("watch") == "true" || r.URL.Query().Get("watch") == "1":
		s.watch(w, r, st, some)
	default:
		s.list(w, st, some)
	}
}

// choice selects objects of a kind; empty fields select all.
type choice struct{ namespace, name string }

// choose parses the selection. The namespace is cut out of the path; the name is the only supported field selector.
// Other selectors are ignored: tests put only selected objects.
func choose(r *http.Request) (path string, c choice) {
	path = r.URL.Path
	if before, rest, ok := strings.Cut(path, "/namespaces/"); ok {
		if ns, resource, ok := strings.Cut(rest, "/"); ok {
			path, c.namespace = before+"/"+resource, ns
		}
	}
	if name, ok := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name="); ok {
		c.name = name
	}
	return path, c
}

func (c choice) has(key string) bool {
	return (c.namespace == "" || strings.HasPrefix(key, c.namespace+"/")) &&
		(c.name == "" || strings.HasSuffix(key, "/"+c.name))
}

func (s *Server) get(w http.ResponseWriter, st *state, key string) {
	s.mu.Lock()
	raw, ok := st.objects[key]
	s.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		return
	}
	_, _ = w.Write(raw)
}

// all returns the present objects, by key.
func (st *state) all(some choice) (list []json.RawMessage) {
	for _, k := range slices.Sorted(maps.Keys(st.objects)) {
		if some.has(k) {
			list = append(list, st.objects[k])
		}
	}
	return list
}

func (s *Server) list(w http.ResponseWriter, st *state, some choice) {
	s.mu.Lock()
	list, version := st.all(some), s.version
	s.mu.Unlock()
	fmt.Fprintf(w, `{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":"%d"},"items":[`, st.kind.list,
		st.apiVersion, version)
	_, _ = w.Write(bytes.Join(toBytes(list), []byte(",")))
	fmt.Fprint(w, "]}")
}

func toBytes(list []json.RawMessage) [][]byte {
	out := make([][]byte, len(list))
	for i, r := range list {
		out[i] = r
	}
	return out
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, st *state, some choice) {
	flusher := w.(http.Flusher)
	var since uint64
	_, _ = fmt.Sscan(r.URL.Query().Get("resourceVersion"), &since)
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		s.mu.Lock()
		list := st.all(some)
		since = s.version
		s.mu.Unlock()
		for _, raw := range list {
			_, _ = w.Write([]byte(`{"type":"ADDED","object":`))
			_, _ = w.Write(raw)
			_, _ = w.Write([]byte("}\n"))
		}
		fmt.Fprintf(w,
			`{"type":"BOOKMARK","object":{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":"%d",`+
				`"annotations":{"k8s.io/initial-events-end":"true"}}}}`+"\n", st.name, st.apiVersion, since)
	}
	flusher.Flush()
	stop := r.Context().Done()
	go func() { <-stop; s.changed.Broadcast() }()
	for r.Context().Err() == nil {
		s.mu.Lock()
		i := 0
		for {
			i, _ = slices.BinarySearchFunc(st.events, since+1, func(e event, v uint64) int {
				if e.version < v {
					return -1
				}
				return map[bool]int{true: 0, false: 1}[e.version == v]
			})
			if i < len(st.events) || s.closed || r.Context().Err() != nil {
				break
			}
			s.changed.Wait()
		}
		news, closed := slices.Clone(st.events[i:]), s.closed
		s.mu.Unlock()
		if closed {
			return
		}
		for _, e := range news {
			since = e.version
			if some.has(e.key) {
				_, _ = w.Write(e.line)
			}
		}
		flusher.Flush()
	}
}
