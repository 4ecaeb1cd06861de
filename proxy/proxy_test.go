package proxy

import (
	"fmt"
	"io"
	"net/http"
	"testing"
)

func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(599)
		return
	}
	w.Header().Set("X-Length", fmt.Sprint(r.ContentLength))
	fmt.Fprintf(w, "%s %s %s|%s|%s", r.Method, r.Host, r.RequestURI, r.Header.Get("X-Forwarded-For"), body)
}

func TestRequestsPassOnOneConnection(t *testing.T) {
	r := newRig(t, nil, handler(t, echo))
	c := r.dial()
	for i := range 20 {
		c.send("GET /a/%d?q=1 HTTP/1.1\r\nHost: Shop.example\r\n\r\n", i)
		resp, body := c.response("GET")
		if want := fmt.Sprintf("GET Shop.example /a/%d?q=1|127.0.0.1|", i); resp.StatusCode != 200 || body != want {
			t.Fatalf("%s %q, want %q", resp.Status, body, want)
		}
		c.send("POST /b HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n\r\nhello")
		if _, body := c.response("POST"); body != "POST shop.example /b|127.0.0.1|hello" {
			t.Fatal(body)
		}
		c.send("POST /c HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: " +
			"chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\n, y\r\n0\r\n\r\n")
		if resp, body := c.response("POST"); body != "POST shop.example /c|127.0.0.1|hello, y" ||
			resp.Header.Get("X-Length") != "-1" {
			t.Fatal(body)
		}
	}
}

// A fault of ours ends one exchange, and the client sees that it is broken.
func TestAPanicEndsOneExchange(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.p.Observe = func(rec *Record) {
			if string(rec.Request.Path()) == "/panic" {
				panic("a fault")
			}
		}
	}, handler(t, echo))
	other, c := r.dial(), r.dial()
	c.send("GET /panic HTTP/1.1\r\nHost: a\r\n\r\n")
	c.response("GET")
	c.ended()
	other.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, _ := other.response("GET"); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
}
