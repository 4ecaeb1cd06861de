package fakeapi

import (
	"bufio"
	"fmt"
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
