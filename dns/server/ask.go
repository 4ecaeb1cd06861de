package server

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/model"
)

// handleQuery answers QueryPath.
func (s *Server) handleQuery(w http.ResponseWriter, r *http.Request) {
	pod, err := podName(r.FormValue("pod"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	qtype, ok := dns.StringToType[strings.ToUpper(r.FormValue("type"))]
	if !ok {
		http.Error(w, fmt.Sprintf("%q is not a record type; allowed: A, AAAA, SRV, PTR, TXT, …", r.FormValue("type")),
			http.StatusBadRequest)
		return
	}
	name := r.FormValue("name")
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		http.Error(w, fmt.Sprintf("%q is not a DNS name", name), http.StatusBadRequest)
		return
	}
	if err := s.explain(r.Context(), w, pod, name, qtype); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
	}
}

// handleLog answers LogPath.
func (s *Server) handleLog(w http.ResponseWriter, r *http.Request) {
	var pod model.Name
	d, err := time.ParseDuration(r.FormValue("for"))
	if err == nil && r.FormValue("pod") != "" {
		pod, err = podName(r.FormValue("pod"))
	}
	if name := r.FormValue("name"); err == nil && name != "" {
		if _, ok := dns.IsDomainName(name); !ok {
			err = fmt.Errorf("%q is not a DNS name", name)
		}
	}
	if err == nil {
		err = s.follow(r.Context(), w, http.NewResponseController(w).Flush, pod, r.FormValue("name"), d)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

func podName(s string) (model.Name, error) {
	ns, name, ok := strings.Cut(s, "/")
	if !ok || ns == "" || name == "" || strings.Contains(name, "/") {
		return model.Name{}, fmt.Errorf("%q is not a pod; allowed: NAMESPACE/NAME", s)
	}
	return model.Name{Namespace: ns, Name: name}, nil
}
