package ingress

import (
	"errors"
	"slices"
	"strings"
)

// harmless are nginx directives that do not restrict access. Any other directive may.
var harmless = strings.Fields(
	`absolute_redirect access_log add_after_body add_before_body add_header add_trailer addition_types aio charset
	charset_types chunked_transfer_encoding client_body_buffer_size client_body_timeout client_header_buffer_size
	client_header_timeout client_max_body_size default_type directio error_log error_page etag expires
	ignore_invalid_headers large_client_header_buffers log_not_found log_subrequest merge_slashes more_clear_headers
	more_clear_input_headers more_set_headers more_set_input_headers output_buffers override_charset
	port_in_redirect postpone_output proxy_cookie_domain proxy_cookie_flags proxy_cookie_path proxy_hide_header
	proxy_http_version proxy_ignore_client_abort proxy_ignore_headers proxy_intercept_errors
	proxy_max_temp_file_size proxy_pass_header proxy_redirect proxy_request_buffering proxy_set_header
	proxy_socket_keepalive proxy_temp_file_write_size grpc_set_header grpc_pass_header grpc_hide_header
	recursive_error_pages reset_timedout_connection resolver resolver_timeout send_timeout sendfile
	server_name_in_redirect server_tokens set set_real_ip_from source_charset ssl_buffer_size ssl_ciphers
	ssl_dhparam ssl_early_data ssl_ecdh_curve ssl_prefer_server_ciphers ssl_protocols ssl_session_cache
	ssl_session_tickets ssl_session_timeout ssl_stapling ssl_stapling_verify tcp_nodelay tcp_nopush
	underscores_in_headers`)

// harmlessKinds are begins of names of such directives.
var harmlessKinds = []string{"gzip", "brotli", "sub_filter", "keepalive_", "lingering_", "http2_", "open_file_cache",
	"opentelemetry", "opentracing", "proxy_buffer", "proxy_busy_buffers",
	"proxy_next_upstream", "proxy_ssl_", "proxy_connect_timeout", "proxy_read_timeout", "proxy_send_timeout",
	"grpc_connect_timeout", "grpc_read_timeout", "grpc_send_timeout", "msie_", "vhost_traffic_status"}

// snippet checks whether nginx configuration may restrict access.
func snippet(_ *parser, v string) error {
	if keepsOut(v, func(d string) bool {
		return !slices.Contains(harmless, d) && !slices.ContainsFunc(harmlessKinds,
			func(k string) bool { return strings.HasPrefix(d, k) })
	}) {
		return errCloses
	}
	return errNotBuilt
}

// streamSnippet is for connections other than HTTP: it configures its own servers.
func streamSnippet(_ *parser, v string) error {
	if keepsOut(v, func(d string) bool {
		return slices.ContainsFunc([]string{"allow", "deny", "auth", "satisfy", "limit_", "return", "js_",
			"ssl_verify_client", "ssl_client_certificate", "access_by_lua", "preread_by_lua"},
			func(k string) bool { return strings.HasPrefix(d, k) })
	}) {
		return errCloses
	}
	return errNotBuilt
}

// keepsOut reports whether a directive of the text, in any block, is a guard. Text that cannot be parsed may be one.
func keepsOut(text string, guard func(directive string) bool) bool {
	l := lexer{rest: text}
	depth, first := 0, true
	for {
		word, kind, err := l.next()
		switch {
		case err != nil:
			return true
		case kind == endOfText:
			return depth != 0 || !first
		case kind == semicolon:
			first = true
		case kind == open:
			if first { // a block without a name
				return true
			}
			depth, first = depth+1, true
		case kind == closing:
			if depth--; depth < 0 || !first {
				return true // it closes the block that contains it
			}
		case first:
			name := strings.ToLower(word)
			if block := name == "location" || name == "server" || name == "upstream"; !block && guard(name) {
				return true
			}
			first = false
		}
	}
}

type tokenKind uint8

const (
	wordToken tokenKind = iota
	semicolon
	open
	closing
	endOfText
)

// lexer tokenizes as ngx_conf_read_token does: comments, quotes, escapes, ${variables}.
type lexer struct{ rest string }

var errUnread = errors.New("an unterminated quote, or text after a quote")

func (l *lexer) next() (word string, kind tokenKind, err error) {
	for {
		l.rest = strings.TrimLeft(l.rest, " \t\r\n")
		if !strings.HasPrefix(l.rest, "#") {
			break
		}
		_, l.rest, _ = strings.Cut(l.rest, "\n")
	}
	if l.rest == "" {
		return "", endOfText, nil
	}
	switch c := l.rest[0]; c {
	case ';', '{', '}':
		l.rest = l.rest[1:]
		return "", map[byte]tokenKind{';': semicolon, '{': open, '}': closing}[c], nil
	case '"', '\'':
		return l.quoted(c)
	}
	return l.plain(), wordToken, nil
}

func (l *lexer) quoted(quote byte) (string, tokenKind, error) {
	var b strings.Builder
	for i := 1; i < len(l.rest); i++ {
		switch c := l.rest[i]; {
		case c == '\\' && i+1 < len(l.rest):
			i++
			b.WriteByte(l.rest[i])
		case c == quote:
			if l.rest = l.rest[i+1:]; l.rest != "" && !strings.ContainsRune(" \t\r\n;{)", rune(l.rest[0])) {
				return "", wordToken, errUnread
			}
			return b.String(), wordToken, nil
		default:
			b.WriteByte(c)
		}
	}
	return "", wordToken, errUnread
}

func (l *lexer) plain() string {
	var b strings.Builder
	i := 0
	for ; i < len(l.rest); i++ {
		c := l.rest[i]
		if c == '\\' && i+1 < len(l.rest) {
			i++
			b.WriteByte(l.rest[i])
			continue
		}
		if c == '{' && i > 0 && l.rest[i-1] == '$' {
			b.WriteByte(c)
			continue
		}
		if strings.IndexByte(" \t\r\n;{", c) >= 0 {
			break
		}
		b.WriteByte(c)
	}
	l.rest = l.rest[i:]
	return b.String()
}
