package message

import "net/http"

// FieldsOf converts a header of net/http to Fields, with one allocation, without fields of the connection (RFC 9113,
// 8.2.2), of the body's framing, and Proxy, see h1.
func FieldsOf(h http.Header) Fields {
	size, count := 0, 0
	for name, values := range h {
		for _, v := range values {
			size += len(name) + len(v)
			count++
		}
	}
	buf := make([]byte, 0, size)
	part := func(s string) []byte {
		n := len(buf)
		buf = append(buf, s...)
		return buf[n:len(buf):len(buf)]
	}
	out := make(Fields, 0, count+8)
	for name, values := range h {
		switch name {
		case "Host", "Content-Length", "Connection", "Proxy", "Proxy-Connection", "Keep-Alive", "Transfer-Encoding",
			"Upgrade", "Te":
			continue
		}
		for _, v := range values {
			out = append(out, Field{Name: part(name), Value: part(v)})
		}
	}
	return out
}
