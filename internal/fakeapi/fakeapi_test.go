package fakeapi

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func service(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}}
}

// Lists, watches and streaming lists see the same objects in order.
func TestListAndWatch(t *testing.T) {
	s := New()
	srv := httptest.NewServer(s)
	defer srv.Close()
	defer s.Close()
	s.Put(service("one"))
	for _, query := range []string{"?watch=1&resourceVersion=0", "?watch=true&sendInitialEvents=true"} {
		resp, err := http.Get(srv.URL + "/api/v1/services" + query)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := make(chan string, 100)
		go func() {
			for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
				lines <- sc.Text()
			}
		}()
		next := func(want ...string) {
			t.Helper()
			select {
			case l := <-lines:
				for _, w := range want {
					if !strings.Contains(l, w) {
						t.Errorf("%s; want %s", l, w)
					}
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("%s: nothing came; want %s", query, want)
			}
		}
		next(`"kind":"Service"`, `"name":"one"`)
		if strings.Contains(query, "sendInitial") {
			next("BOOKMARK", "initial-events-end")
		}
		name := fmt.Sprint("two", len(query))
		if !strings.Contains(query, "sendInitial") {
			s.Put(service(name))
			next("ADDED", name)
			s.Delete(service(name))
			next("DELETED", name)
		}
	}
}

// One object of a namespace is listed and watched alone, as clients do that may read no
// other.
func TestOneObjectAlone(t *testing.T) {
	s := New()
	srv := httptest.NewServer(s)
	defer srv.Close()
	defer s.Close()
	secret := func(ns, name, value string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
			StringData: map[string]string{"x": value}}
	}
	s.Put(secret("a", "one", "mine"), secret("a", "two", "other"), secret("b", "one", "other"))
	resp, err := http.Get(srv.URL +
		"/api/v1/namespaces/a/secrets?watch=1&resourceVersion=1&fieldSelector=metadata.name%3Done")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	s.Put(secret("b", "one", "other"), secret("a", "one", "changed"))
	sc := bufio.NewScanner(resp.Body)
	for _, want := range []string{"mine", "changed"} {
		if !sc.Scan() || !strings.Contains(sc.Text(), want) {
			t.Errorf("watched %s, want %s", sc.Text(), want)
		}
	}
	list, err := http.Get(srv.URL + "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Done")
	if err != nil {
		t.Fatal(err)
	}
	defer list.Body.Close()
	if raw, err := io.ReadAll(list.Body); err != nil || strings.Count(string(raw), `"name":`) != 1 ||
		!strings.Contains(string(raw), "changed") {
		t.Errorf("listed %s, %v", raw, err)
	}
}
