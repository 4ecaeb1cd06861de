package table

import (
	"fmt"
	"strings"
)

// Template is text with variables of a request in it, as "$host", "${arg_id}" or "$1".
type Template []Part

// Part is text, or a variable when Kind says so.
type Part struct {
	Kind VariableKind
	// Name is the text; of a header field, cookie or argument it is the name, in lower case
	// and with "-" for "_" of a header field.
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
	RequestURI                     // $request_uri: path and query as they were sent
	EscapedRequestURI              // $escaped_request_uri: the same for a query's value
	URI                            // $uri: the path, decoded and cleaned
	HostName                       // $host: in lower case, without port
	HTTPHost                       // $http_host: as it was sent
	Scheme                         // $scheme
	RemoteAddr                     // $remote_addr: the client
	Args                           // $args, $query_string
	Method                         // $request_method
	HeaderField                    // $http_NAME
	CookieValue                    // $cookie_NAME
	Argument                       // $arg_NAME
)

// ParseTemplate reads one. The error names a variable that is not known.
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

// variableName splits what follows a dollar sign.
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
	switch name {
	case "request_uri":
		return Part{Kind: RequestURI}, nil
	case "escaped_request_uri":
		return Part{Kind: EscapedRequestURI}, nil
	case "uri":
		return Part{Kind: URI}, nil
	case "host":
		return Part{Kind: HostName}, nil
	case "http_host":
		return Part{Kind: HTTPHost}, nil
	case "scheme", "pass_access_scheme":
		return Part{Kind: Scheme}, nil
	case "remote_addr":
		return Part{Kind: RemoteAddr}, nil
	case "args", "query_string":
		return Part{Kind: Args}, nil
	case "request_method":
		return Part{Kind: Method}, nil
	}
	if len(name) == 1 && '1' <= name[0] && name[0] <= '9' {
		return Part{Kind: Group, Group: int(name[0] - '0')}, nil
	}
	for _, k := range []struct {
		prefix string
		kind   VariableKind
	}{{"http_", HeaderField}, {"cookie_", CookieValue}, {"arg_", Argument}} {
		if rest, ok := strings.CutPrefix(name, k.prefix); ok && rest != "" {
			if k.kind == HeaderField {
				rest = strings.ReplaceAll(strings.ToLower(rest), "_", "-")
			}
			return Part{Kind: k.kind, Name: rest}, nil
		}
	}
	return Part{}, fmt.Errorf("variable %q is not known", "$"+name)
}

// Has says whether the template has a variable of the kind.
func (t Template) Has(k VariableKind) bool {
	for _, p := range t {
		if p.Kind == k {
			return true
		}
	}
	return false
}
