package server

import (
	"net/http"
	"strings"

	"wayleave.dev/proxy/message"
)

// addFields adds fields to a header of net/http. All values share one allocation, and common names need none.
func addFields(h http.Header, list message.Fields) {
	size := 0
	for i := range list {
		size += len(list[i].Value)
	}
	var all strings.Builder
	all.Grow(size)
	for i := range list {
		all.Write(list[i].Value)
	}
	rest, values := all.String(), make([]string, len(list))
	for i := range list {
		n := len(list[i].Value)
		values[i], rest = rest[:n], rest[n:]
		name := canonical(list[i].Name)
		if _, there := h[name]; there {
			h[name] = append(h[name], values[i])
			continue
		}
		h[name] = values[i : i+1 : i+1]
	}
}

// canonical returns the name as net/http has it in its maps.
func canonical(name []byte) string {
	switch string(name) { // as servers write them, without a copy
	case "Date", "date":
		return "Date"
	case "Server", "server":
		return "Server"
	case "Content-Type", "content-type":
		return "Content-Type"
	case "Cache-Control", "cache-control":
		return "Cache-Control"
	case "Content-Encoding", "content-encoding":
		return "Content-Encoding"
	case "Last-Modified", "last-modified":
		return "Last-Modified"
	case "ETag", "Etag", "etag":
		return "Etag"
	case "Accept-Ranges", "accept-ranges":
		return "Accept-Ranges"
	case "Vary", "vary":
		return "Vary"
	case "Location", "location":
		return "Location"
	case "Set-Cookie", "set-cookie":
		return "Set-Cookie"
	case "Expires", "expires":
		return "Expires"
	case "X-Content-Type-Options", "x-content-type-options":
		return "X-Content-Type-Options"
	case "Strict-Transport-Security", "strict-transport-security":
		return "Strict-Transport-Security"
	}
	return http.CanonicalHeaderKey(string(name))
}
