package table

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Template is text with variables of a request, such as "$host", "${arg_id}" or "$1".
type Template []Part

// Part is text, or a variable if Kind is set.
type Part struct {
	Kind VariableKind
	// Name is the text, or the name of a header field, cookie or argument, in lower case and with "-" for "_" in a
	// header field.
	Name string
	// Group is the number of a pattern's group.
	Group int
}

// VariableKind is what a variable stands for.
type VariableKind uint8

// The variables, by their names in nginx.
const (
	Text              VariableKind = iota
	Group                          // $1 … $9
	RequestURI                     // $request_uri: path and query as sent
	EscapedRequestURI              // $escaped_request_uri: the same for a query's value
	URI                            // $uri: the path, decoded and cleaned
	HostName                       // $host: in lower case, without port
	HTTPHost                       // $http_host: as sent
	Scheme                         // $scheme
	RemoteAddr                     // $remote_addr: the client
	Args                           // $args, $query_string
	Method                         // $request_method
	HeaderField                    // $http_NAME
	CookieValue                    // $cookie_NAME
	Argument                       // $arg_NAME
	BinaryRemoteAddr               // $binary_remote_addr: the client, in 4 or 16 bytes
	ConnectedAddr                  // $realip_remote_addr: the peer of the connection
	RemotePort                     // $remote_port: 0 if a trusted proxy names the client
	RemoteUser                     // $remote_user: the name of basic authentication
	ServerName                     // $server_name: the host of the route, "_" for none
	ServerAddr                     // $server_addr: the address that the client connected to
	ServerPort                     // $server_port, $pass_server_port, $pass_port
	ServerProtocol                 // $server_protocol: HTTP/1.0, HTTP/1.1 or HTTP/2.0
	IsArgs                         // $is_args: "?" if there is a query
	HTTPSOn                        // $https: "on" or nothing
	RequestLine                    // $request: method, target and protocol
	RequestID                      // $request_id: 128 random bits, in 32 digits
	KnownRequestID                 // $req_id: the client's X-Request-ID, otherwise $request_id
	ContentLength                  // $content_length
	Milliseconds                   // $msec: seconds since 1970, with milliseconds
	TimeISO8601                    // $time_iso8601
	TimeLocal                      // $time_local: as in access logs
	Namespace                      // $namespace: that of the Ingress
	IngressName                    // $ingress_name
	ServiceName                    // $service_name
	ServicePort                    // $service_port
	UpstreamName                   // $proxy_upstream_name: NAMESPACE-SERVICE-PORT
	LocationPath                   // $location_path: the path of the Ingress
)

// named are the variables whose names contain no name from the request.
var named = map[string]VariableKind{
	"request_uri": RequestURI, "escaped_request_uri": EscapedRequestURI, "uri": URI, "document_uri": URI,
	"host": HostName, "http_host": HTTPHost, "best_http_host": HTTPHost, "scheme": Scheme, "pass_access_scheme": Scheme,
	"remote_addr": RemoteAddr, "the_real_ip": RemoteAddr, "binary_remote_addr": BinaryRemoteAddr,
	"realip_remote_addr": ConnectedAddr,
	"remote_port":        RemotePort, "remote_user": RemoteUser, "args": Args, "query_string": Args, "is_args": IsArgs,
	"request_method": Method, "request": RequestLine, "request_id": RequestID, "req_id": KnownRequestID,
	"content_length": ContentLength, "msec": Milliseconds, "time_iso8601": TimeISO8601, "time_local": TimeLocal,
	"server_name": ServerName, "server_addr": ServerAddr, "server_port": ServerPort, "pass_server_port": ServerPort,
	"pass_port":       ServerPort,
	"server_protocol": ServerProtocol, "https": HTTPSOn, "namespace": Namespace, "ingress_name": IngressName,
	"service_name": ServiceName,
	"service_port": ServicePort, "proxy_upstream_name": UpstreamName, "location_path": LocationPath,
}

// Variables returns the names that ParseTemplate knows, in order, without $http_NAME, $cookie_NAME, $arg_NAME and
// groups.
func Variables() []string { return slices.Sorted(maps.Keys(named)) }

// ParseTemplate parses a template. The error names an unknown variable.
func ParseTemplate(s string) (Template, error) {
	var t Template
	for s != "" {
		i := strings.IndexByte(s, '$')
		if i < 0 {
			return append(t, Part{Name: s}), nil
		}
		if i > 0 {
			t = append(t, Part{Name: s[:i]})
		}
		name, rest, err := variableName(s[i+1:])
		if err != nil {
			return nil, err
		}
		p, err := variable(name)
		if err != nil {
			return nil, err
		}
		t, s = append(t, p), rest
	}
	return t, nil
}

// variableName splits the text after a dollar sign.
func variableName(s string) (name, rest string, err error) {
	if strings.HasPrefix(s, "{") {
		name, rest, ok := strings.Cut(s[1:], "}")
		if !ok {
			return "", "", fmt.Errorf("variable %q has no closing brace", "$"+s)
		}
		return name, rest, nil
	}
	if s != "" && '0' <= s[0] && s[0] <= '9' { // $10 is $1 and a zero
		return s[:1], s[1:], nil
	}
	n := 0
	for n < len(s) && (s[n] == '_' || 'a' <= s[n]|0x20 && s[n]|0x20 <= 'z' || '0' <= s[n] && s[n] <= '9') {
		n++
	}
	if n == 0 {
		return "", "", fmt.Errorf("a $ without the name of a variable before %q", s)
	}
	return s[:n], s[n:], nil
}

func variable(name string) (Part, error) {
	if k, ok := named[strings.ToLower(name)]; ok {
		return Part{Kind: k}, nil
	}
	if strings.EqualFold(name, "literal_dollar") { // of ingress-nginx: no other spelling of a dollar sign is text
		return Part{Name: "$"}, nil
	}
	if strings.EqualFold(name, "content_type") {
		return Part{Kind: HeaderField, Name: "content-type"}, nil
	}
	if len(name) == 1 && '1' <= name[0] && name[0] <= '9' {
		return Part{Kind: Group, Group: int(name[0] - '0')}, nil
	}
	for _, k := range []struct {
		prefix string
		kind   VariableKind
	}{{"http_", HeaderField}, {"cookie_", CookieValue}, {"arg_", Argument}} {
		if len(name) > len(k.prefix) && strings.EqualFold(name[:len(k.prefix)], k.prefix) {
			rest := name[len(k.prefix):]
			if k.kind == HeaderField {
				rest = strings.ReplaceAll(strings.ToLower(rest), "_", "-")
			}
			return Part{Kind: k.kind, Name: rest}, nil
		}
	}
	return Part{}, fmt.Errorf("variable %q is not known", "$"+name)
}

// IsURL reports whether the text begins with the scheme of a URL, by nginx's rule.
func (t Template) IsURL() bool {
	if len(t) == 0 {
		return false
	}
	if first := t[0]; first.Kind != Text {
		return first.Kind == Scheme && len(t) > 1 && t[1].Kind == Text && strings.HasPrefix(t[1].Name, "://")
	}
	return strings.HasPrefix(t[0].Name, "http://") || strings.HasPrefix(t[0].Name, "https://")
}

// Has reports whether the template has a variable of one of the kinds.
func (t Template) Has(kinds ...VariableKind) bool {
	for _, p := range t {
		if slices.Contains(kinds, p.Kind) {
			return true
		}
	}
	return false
}
