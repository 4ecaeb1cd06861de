package h1

import (
	"testing"

	"wayleave.dev/proxy/message"
)

// BenchmarkHeads parses a head as browsers and servers send it.
func BenchmarkHeads(b *testing.B) {
	request := []byte("GET /shop/list?page=2 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux " +
		"x86_64)\r\nAccept: text/html,*/*;q=0.8\r\n" +
		"Accept-Language: en\r\nAccept-Encoding: gzip, br\r\nConnection: keep-alive\r\nCookie: " +
		"session=0123456789abcdef0123456789abcdef; lang=en\r\nReferer: https://shop.example/\r\n\r\n")
	response := []byte("HTTP/1.1 200 OK\r\nServer: x\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\nContent-Type: " +
		"text/html; charset=utf-8\r\nContent-Length: 1024\r\n" +
		"Connection: keep-alive\r\nCache-Control: no-cache\r\nVary: Accept-Encoding\r\nETag: " +
		"\"0123456789\"\r\nX-Frame-Options: DENY\r\n\r\n")
	b.Run("request", func(b *testing.B) {
		b.ReportAllocs()
		var r message.Request
		var fr framing
		for b.Loop() {
			if _, err := parseRequest(request, &r, &fr); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("response", func(b *testing.B) {
		b.ReportAllocs()
		var r message.Response
		var fr framing
		for b.Loop() {
			if _, _, err := parseResponse(response, &r, &fr, []byte("GET")); err != nil {
				b.Fatal(err)
			}
		}
	})
}
