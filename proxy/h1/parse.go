package h1

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"wayleave.dev/proxy/message"
)

// Error describes an invalid message; if it is a request, Status is the answer.
type Error struct {
	Status int
	Reason string
}

// Error returns the fault and its status.
func (e *Error) Error() string { return fmt.Sprintf("HTTP/1: %s (%d)", e.Reason, e.Status) }

// IsTooLarge reports whether the only fault of a head or of trailers is that they exceed their limits.
func (e *Error) IsTooLarge() bool { return e.Status == 431 }

func bad(reason string) error { return &Error{Status: 400, Reason: reason} }

// errMore means that the head is incomplete.
var errMore = errors.New("incomplete")

// maxFields bounds the number of fields of a message if no other limit is set. maxNamed bounds the fields that its
// Connection names: two bytes of a head would occupy 24 bytes of memory each.
//
// maxUpgrade bounds the protocols that a message requests in several fields Upgrade.
const (
	maxFields  = 128
	maxNamed   = 32
	maxUpgrade = 256
)

// HeadLimits bounds the head of a message. Zero means the default.
type HeadLimits struct {
	// Bytes bounds the complete head, Fields their number.
	Bytes, Fields int
}

// DefaultRequestHead is nginx's limit for clients (large_client_header_buffers), with as many fields as most servers
// accept.
func DefaultRequestHead() HeadLimits { return HeadLimits{Bytes: 32 << 10, Fields: maxFields} }

// DefaultResponseHead is far above nginx's proxy_buffer_size (4 KiB or 8 KiB), because endpoints are trusted more than
// clients.
func DefaultResponseHead() HeadLimits { return HeadLimits{Bytes: 64 << 10, Fields: 1024} }

// or returns the limits, with those of d in place of zeros.
func (l HeadLimits) or(d HeadLimits) HeadLimits {
	return HeadLimits{Bytes: cmp.Or(l.Bytes, d.Bytes), Fields: cmp.Or(l.Fields, d.Fields)}
}

// head returns the lines of a message's head, one after the other, from the bytes received so far. Every line must end
// in CR LF, and contain no other CR or LF: programs that disagree on line ends disagree on where a request ends (RFC
// 9112, 2.2).
type head struct {
	buf []byte
	off int
	// lf accepts LF alone as the end of a line, as RFC 9112, 2.2 allows. It is used for endpoints only: they are
	// trusted to answer the request, and no program parses a second request from their answers.
	lf bool
}

// line returns the next line without its end; errMore if its end has not arrived.
func (h *head) line() ([]byte, error) {
	rest := h.buf[h.off:]
	n := bytes.IndexByte(rest, '\n')
	if n < 0 {
		// A CR is allowed only as the last byte.
		if i := bytes.IndexByte(rest, '\r'); i >= 0 && i < len(rest)-1 {
			return nil, bad("a CR without LF")
		}
		return nil, errMore
	}
	if n == 0 || rest[n-1] != '\r' {
		if !h.lf {
			return nil, bad("a line that ends in LF without CR")
		}
		if bytes.IndexByte(rest[:n], '\r') >= 0 {
			return nil, bad("a CR without LF")
		}
		h.off += n + 1
		return rest[:n], nil
	}
	if bytes.IndexByte(rest[:n-1], '\r') >= 0 {
		return nil, bad("a CR without LF")
	}
	h.off += n + 1
	return rest[:n-1], nil
}

// first returns the first line of a message. Bytes of TLS or of another protocol are refused at once, without waiting
// for a line's end that never arrives.
func (h *head) first() ([]byte, error) {
	line, err := h.line()
	if err == errMore && !startsLine(h.buf[h.off:]) {
		err = bad("a line that begins as no message does")
	}
	return line, err
}

// startsLine reports whether a first line may begin like this: with a token, such as a method or "HTTP", followed by a
// space or slash.
func startsLine(b []byte) bool {
	for i, c := range b {
		switch {
		case c == ' ' || c == '/':
			return i > 0
		case c == '\r':
			return true // an empty line before the message, or an error that line reports
		case !token[c] || i >= maxMethod:
			return false
		}
	}
	return true
}

// maxMethod bounds a method's length.
const maxMethod = 64

// framing is what the fields of a message declare about its connection and body.
type framing struct {
	length                             int64 // -1: no Content-Length
	chunked, close, keepAlive, upgrade bool
	identity                           bool // Transfer-Encoding: identity, in a response
	trailers, expect                   bool
	host, upgradeTo                    []byte
	hosts                              int
	// named are the fields that Connection names, except the well-known ones.
	named [][]byte
	// most is how many fields the head may have; reset keeps it.
	most int
}

// reset prepares it for the next message.
func (fr *framing) reset() { *fr = framing{named: fr.named[:0], most: fr.most} }

// fields reads field lines up to the empty line. Fields of the connection go to fr.
func (h *head) fields(list *message.Fields, fr *framing, request bool) error {
	fr.length = -1
	count, most := 0, cmp.Or(fr.most, maxFields)
	for {
		line, err := h.line()
		if err != nil {
			return err
		}
		if len(line) == 0 {
			break
		}
		if count++; count > most {
			return &Error{Status: 431, Reason: "too many fields"}
		}
		name, val, err := field(line, request)
		if err != nil {
			return err
		}
		hop, err := fr.take(name, val, request)
		if err != nil {
			return err
		}
		if !hop {
			*list = append(*list, message.Field{Name: name, Value: val})
		}
	}
	for _, n := range fr.named {
		list.Del(string(n))
	}
	return nil
}

// field splits a field line (RFC 9112, 5). No white space is allowed before the colon, nor at the start of the line,
// where it would continue the previous line (obs-fold). In responses, control characters other than NUL in values
// become spaces (RFC 9110, 5.5): servers send them, and they end nothing.
func field(line []byte, request bool) (name, val []byte, err error) {
	if line[0] == ' ' || line[0] == '\t' {
		return nil, nil, bad("a folded field line")
	}
	i := bytes.IndexByte(line, ':')
	if i <= 0 {
		return nil, nil, bad("a field line without name or colon")
	}
	name, val = line[:i], trim(line[i+1:])
	if !all(name, &token) {
		return nil, nil, bad("a field name with a character that is not allowed")
	}
	if !all(val, &value) {
		if request || bytes.IndexByte(val, 0) >= 0 {
			return nil, nil, bad("a field value with a control character")
		}
		val = spaced(val)
	}
	return name, val, nil
}

// spaced returns a copy of a value with spaces in place of control characters.
func spaced(val []byte) []byte {
	out := bytes.Clone(val)
	for i, c := range out {
		if !value[c] {
			out[i] = ' '
		}
	}
	return trim(out)
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// take parses a field of the connection or of the body's framing; hop reports whether it was one.
func (fr *framing) take(name, val []byte, request bool) (hop bool, err error) {
	switch len(name) { // most names have a length that none of these have
	case 2:
		if message.EqualFold(name, "te") {
			fr.trailers = fr.trailers || hasToken(val, "trailers")
			return true, nil
		}
	case 4:
		if request && message.EqualFold(name, "host") {
			fr.host, fr.hosts = val, fr.hosts+1
			return true, nil
		}
	case 5:
		// CGI programs take Proxy for the setting HTTP_PROXY (httpoxy, CVE-2016-5385). No client has a use for it.
		return request && message.EqualFold(name, "proxy"), nil
	case 6:
		if request && message.EqualFold(name, "expect") {
			return true, fr.expects(val)
		}
	case 7:
		if message.EqualFold(name, "upgrade") {
			fr.upgrades(val)
			return true, nil
		}
	case 10:
		if message.EqualFold(name, "connection") {
			return true, fr.connection(val)
		}
		if message.EqualFold(name, "keep-alive") {
			return true, nil
		}
	case 14:
		if message.EqualFold(name, "content-length") {
			return true, fr.contentLength(val, request)
		}
	case 16:
		return message.EqualFold(name, "proxy-connection"), nil
	case 17:
		if message.EqualFold(name, "transfer-encoding") {
			return true, fr.transferEncoding(val, request)
		}
	}
	return false, nil
}

// upgrades adds the protocols of one field Upgrade; several fields form one list (RFC 9110, 5.3).
func (fr *framing) upgrades(val []byte) {
	switch {
	case len(fr.upgradeTo) == 0:
		fr.upgradeTo = val
	case len(val) > 0 && len(fr.upgradeTo)+len(val) <= maxUpgrade:
		fr.upgradeTo = append(append(slices.Clip(fr.upgradeTo), ", "...), val...)
	}
}

// expects parses a list of expectations, which may be empty (RFC 9110, 10.1.1).
func (fr *framing) expects(list []byte) error {
	for len(list) > 0 {
		var one []byte
		one, list = cut(list)
		switch {
		case len(one) == 0:
		case !message.EqualFold(one, "100-continue"):
			return &Error{Status: 417, Reason: "an expectation other than 100-continue"}
		default:
			fr.expect = true
		}
	}
	return nil
}

// contentLength parses one value of digits. In a request a second value is refused even if it is equal: programs in
// front of or behind the proxy may combine them differently. In a response an equal value is allowed (RFC 9112, 6.3),
// and forwarded once.
func (fr *framing) contentLength(val []byte, request bool) error {
	if fr.length >= 0 && request {
		return bad("Content-Length twice")
	}
	if len(val) == 0 || len(val) > 18 {
		return bad("a Content-Length that is not a number")
	}
	n := int64(0)
	for _, c := range val {
		if c < '0' || c > '9' {
			return bad("a Content-Length that is not a number")
		}
		n = n*10 + int64(c-'0')
	}
	if fr.length >= 0 && fr.length != n {
		return bad("two values of Content-Length")
	}
	fr.length = n
	return nil
}

// transferEncoding accepts "chunked", once. Servers older than RFC 7230 send "identity" for no encoding.
func (fr *framing) transferEncoding(val []byte, request bool) error {
	if fr.chunked || fr.identity {
		return bad("Transfer-Encoding twice")
	}
	switch {
	case message.EqualFold(val, "chunked"):
		fr.chunked = true
	case !request && message.EqualFold(val, "identity"):
		fr.identity = true
	default:
		return &Error{Status: 501, Reason: "a Transfer-Encoding other than chunked"}
	}
	return nil
}

func (fr *framing) connection(val []byte) error {
	for len(val) > 0 {
		var one []byte
		one, val = cut(val)
		switch {
		case len(one) == 0:
		case message.EqualFold(one, "close"):
			fr.close = true
		case message.EqualFold(one, "keep-alive"):
			fr.keepAlive = true
		case message.EqualFold(one, "upgrade"):
			fr.upgrade = true
		case message.EqualFold(one, "te"):
		case len(fr.named) == maxNamed:
			return &Error{Status: 431, Reason: "too many options of Connection"}
		default:
			fr.named = append(fr.named, one)
		}
	}
	return nil
}

// forget drops references into the buffer of a head: other connections get that buffer, or it would live as long as the
// connection. A long list is dropped completely.
func (fr *framing) forget(list *message.Fields) {
	clear(fr.named)
	fr.reset()
	if cap(*list) > mostKept {
		*list = nil
		return
	}
	clear((*list)[:cap(*list)])
	*list = (*list)[:0]
}

// mostKept is the longest list of fields that an idle connection keeps for its next message.
const mostKept = 64

// cut returns the first element of a list and the rest.
func cut(list []byte) (first, rest []byte) {
	if i := bytes.IndexByte(list, ','); i >= 0 {
		return trim(list[:i]), list[i+1:]
	}
	return trim(list), nil
}

func hasToken(list []byte, want string) bool {
	for len(list) > 0 {
		var one []byte
		if one, list = cut(list); message.EqualFold(one, want) {
			return true
		}
	}
	return false
}

// parseRequest parses a request's head at the start of buf. It returns the length of the head; errMore if it is
// incomplete.
func parseRequest(buf []byte, r *message.Request, fr *framing) (n int, err error) {
	h := head{buf: buf}
	// Old clients send an empty line after a body (RFC 9112, 2.2).
	if len(buf) >= 2 && buf[0] == '\r' && buf[1] == '\n' {
		h.off = 2
	}
	line, err := h.first()
	if err != nil {
		return 0, err
	}
	fr.reset()
	if err := requestLine(line, r); err != nil {
		return 0, err
	}
	r.Fields = r.Fields[:0]
	if err := h.fields(&r.Fields, fr, true); err != nil {
		return 0, err
	}
	return h.off, fr.request(r)
}

func requestLine(line []byte, r *message.Request) error {
	i := bytes.IndexByte(line, ' ')
	j := bytes.LastIndexByte(line, ' ')
	if i <= 0 || j <= i+1 {
		return bad("a request line that is not METHOD TARGET VERSION")
	}
	r.Method, r.Target = line[:i], line[i+1:j]
	switch string(line[j+1:]) {
	case "HTTP/1.1":
		r.Version = message.HTTP11
	case "HTTP/1.0":
		r.Version = message.HTTP10
	default:
		if v := line[j+1:]; len(v) == 8 && string(v[:5]) == "HTTP/" && v[6] == '.' {
			return &Error{Status: 505, Reason: "a version of HTTP other than 1.0 and 1.1"}
		}
		return bad("a request line without HTTP version")
	}
	if len(r.Method) > maxMethod || !all(r.Method, &token) {
		return bad("a method with a character that is not allowed")
	}
	if !all(r.Target, &target) {
		return bad("a target with a character that is not allowed")
	}
	return nil
}

// request completes a head, and checks combinations of fields.
func (fr *framing) request(r *message.Request) error {
	if fr.chunked && fr.length >= 0 {
		return bad("Content-Length and Transfer-Encoding")
	}
	if fr.chunked && r.Version == message.HTTP10 {
		return bad("Transfer-Encoding in HTTP/1.0")
	}
	r.Length = max(fr.length, 0)
	if fr.chunked {
		r.Length = message.Unknown
	}
	if fr.hosts > 1 || fr.hosts == 0 && r.Version == message.HTTP11 {
		return bad("not one Host")
	}
	r.Host = fr.host
	if err := absolute(r); err != nil {
		return err
	}
	if !host(r.Host) {
		return bad("a Host that is not a name or address with an optional port")
	}
	r.Continue = fr.expect && r.Version == message.HTTP11 && r.Length != 0
	r.Trailers = fr.trailers
	r.Upgrade = nil
	if fr.upgrade && r.Version == message.HTTP11 {
		r.Upgrade = upgradable(fr.upgradeTo)
	}
	return nil
}

// upgradable returns the protocols of a list to which an endpoint may switch; nil for none.
func upgradable(list []byte) []byte {
	if len(list) > maxUpgrade {
		return nil
	}
	if isUpgradable(list) {
		return list
	}
	var out []byte
	for len(list) > 0 {
		var one []byte
		if one, list = cut(list); !isUpgradable(one) {
			continue
		}
		if len(out) > 0 {
			out = append(out, ", "...)
		}
		out = append(out, one...)
	}
	return out
}

// isUpgradable reports whether it is one protocol that does not carry HTTP: requests in such a tunnel would be neither
// routed nor guarded.
func isUpgradable(to []byte) bool {
	name, _, _ := bytes.Cut(to, []byte("/"))
	for _, carrier := range []string{"h2c", "h2", "h3", "http", "tls", "ssl"} {
		if message.EqualFold(name, carrier) {
			return false
		}
	}
	for _, c := range to {
		if c != '/' && !token[c] {
			return false
		}
	}
	return len(name) > 0
}

// IsHost reports whether a request may have h as its host: a name or an address with an optional port, or nothing. It
// is the rule for all versions of HTTP, because endpoints get requests of each by HTTP/1.1.
func IsHost(h []byte) bool { return host(h) }

// host reports whether h is a name or an address, with an optional port (RFC 3986, 3.2.2 and 3.2.3); it may be empty.
func host(h []byte) bool {
	if len(h) > 261 || !all(h, &hostChars) {
		return false
	}
	rest := h
	if len(h) > 0 && h[0] == '[' {
		i := bytes.IndexByte(h, ']')
		if i < 0 || i+1 < len(h) && h[i+1] != ':' {
			return false
		}
		rest = h[i+1:]
	}
	i := bytes.IndexByte(rest, ':')
	if i < 0 {
		return bytes.IndexByte(rest, ']') < 0 && bytes.IndexByte(rest, '[') < 0
	}
	if len(rest)-i > 6 || bytes.IndexByte(rest[:i], ']') >= 0 || bytes.IndexByte(rest[:i], '[') >= 0 {
		return false
	}
	for _, c := range rest[i+1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return i > 0 || len(rest) < len(h)
}

// absolute converts http://HOST/PATH to the form that servers get (RFC 9112, 3.2.2): its host overrides the field Host.
func absolute(r *message.Request) error {
	if len(r.Target) > 0 && r.Target[0] == '/' {
		return nil
	}
	if string(r.Target) == "*" && string(r.Method) == "OPTIONS" {
		return nil
	}
	if string(r.Method) == "CONNECT" {
		return &Error{Status: 405, Reason: "CONNECT"}
	}
	for _, scheme := range []string{"http://", "https://"} {
		if len(r.Target) < len(scheme) || !message.EqualFold(r.Target[:len(scheme)], scheme) {
			continue
		}
		rest := r.Target[len(scheme):]
		i := bytes.IndexAny(rest, "/?")
		if i < 0 {
			r.Host, r.Target = rest, slash
		} else if rest[i] == '/' {
			r.Host, r.Target = rest[:i], rest[i:]
		} else {
			r.Host, r.Target = rest[:i], append([]byte{'/'}, rest[i:]...)
		}
		if len(r.Host) == 0 {
			return bad("a target without host")
		}
		return nil
	}
	return bad("a target that does not begin with a slash")
}

var slash = []byte("/")

// parseResponse parses a response's head. keep reports whether the connection can be used again once the body has
// ended.
func parseResponse(buf []byte, r *message.Response, fr *framing, method []byte) (n int, keep bool, err error) {
	h := head{buf: buf, lf: true}
	line, err := h.first()
	if err != nil {
		return 0, false, err
	}
	fr.reset()
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[7] < '0' || line[7] > '9' || line[8] != ' ' ||
		len(line) > 12 && line[12] != ' ' {
		return 0, false, bad("a status line that is not HTTP/1.x STATUS REASON")
	}
	status := 0
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return 0, false, bad("a status that is not a number")
		}
		status = status*10 + int(c-'0')
	}
	if status < 100 {
		return 0, false, bad("a status below 100")
	}
	r.Status, r.Reason = status, nil
	if len(line) > 13 {
		if r.Reason = line[13:]; !all(r.Reason, &value) {
			return 0, false, bad("a reason with a control character")
		}
	}
	r.Fields = r.Fields[:0]
	if err := h.fields(&r.Fields, fr, false); err != nil {
		return 0, false, err
	}
	return h.off, fr.response(r, method, line[7] == '1'), nil
}

// response decides how the body ends, in r.Length and fr, and whether the connection stays open. Transfer-Encoding
// takes precedence over Content-Length, and then the connection is not used again (RFC 9112, 6.3); nor is one with
// Transfer-Encoding in a response of HTTP/1.0 (6.1).
func (fr *framing) response(r *message.Response, method []byte, minor1 bool) (keep bool) {
	keep = !fr.close && (minor1 || fr.keepAlive) && !fr.identity
	if fr.chunked && (fr.length >= 0 || !minor1) {
		keep, fr.length = false, -1
	}
	r.Length, r.Upgrade = fr.length, nil
	if r.Status == 101 {
		r.Upgrade = fr.upgradeTo
	}
	if r.Bodyless(method) {
		r.Length = max(fr.length, message.Unknown)
		fr.chunked = false
		return keep
	}
	if r.Length < 0 && !fr.chunked {
		keep = false // the body ends with the connection
	}
	return keep
}
