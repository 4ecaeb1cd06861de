package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	neturl "net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/internal/logging"
	"wayleave.dev/model"
	proxytable "wayleave.dev/proxy/table"
)

type setter = func(c *Config, v any) error

func boolean(at func(*Config) *bool) setter {
	return func(c *Config, v any) error {
		b, ok := v.(bool)
		if !ok {
			return errors.New("true and false are allowed")
		}
		*at(c) = b
		return nil
	}
}

func text(at func(*Config) *string, check func(string) error) setter {
	return func(c *Config, v any) error {
		s, ok := v.(string)
		if !ok {
			return errors.New("a text is allowed")
		}
		if s != "" {
			if err := check(s); err != nil {
				return err
			}
		}
		*at(c) = s
		return nil
	}
}

func url(s string) error {
	u, err := neturl.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return errors.New("a URL like https://10.0.0.1:6443 is allowed")
	}
	return nil
}

// folder checks a path of a folder other than the root.
func folder(s string) error {
	if !path.IsAbs(s) || path.Clean(s) != s || s == "/" || strings.ContainsAny(s, ":\n\"'{}[]#\\ ") {
		return errors.New("an absolute path like /etc/cni/net.d is allowed")
	}
	return nil
}

// webURL checks a URL of http or https, which can contain variables of the proxy.
func webURL(s string) error {
	if _, err := proxytable.ParseTemplate(s); err != nil {
		return err
	}
	plain := variables.ReplaceAllString(s, "x")
	u, err := neturl.Parse(plain)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return errors.New("a URL like https://auth.example.com/check is allowed")
	}
	return nil
}

var variables = regexp.MustCompile(`\$\{?\w+\}?`)

// fieldName checks the name of a header field (RFC 9110, 5.1).
func fieldName(s string) (string, error) {
	if s == "" || strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return "", errors.New("not the name of a header field")
	}
	return s, nil
}

func domain(s string) error {
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || strings.Trim(strings.ToLower(label),
			"abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return errors.New("a DNS name like cluster.local is allowed")
		}
	}
	return nil
}

// domainName is domain for a list.
func domainName(s string) (string, error) { return s, domain(s) }

// oneOf allows the values that are built. Values in later are refused as not built yet.
func oneOf(at func(*Config) *string, built, later []string) setter {
	return func(c *Config, v any) error {
		s, ok := v.(string)
		switch {
		case ok && slices.Contains(built, s):
			*at(c) = s
			return nil
		case ok && slices.Contains(later, s):
			return fmt.Errorf("that is not built yet; allowed: %s", strings.Join(built, ", "))
		}
		return fmt.Errorf("allowed: %s", strings.Join(built, ", "))
	}
}

func duration(at func(*Config) *time.Duration, low, high time.Duration) setter {
	return func(c *Config, v any) error {
		s, _ := v.(string)
		d, err := time.ParseDuration(s)
		if err != nil || d < low || d > high {
			return fmt.Errorf("a duration from %s to %s is allowed", low, high)
		}
		*at(c) = d
		return nil
	}
}

func port(at func(*Config) *int) setter {
	return func(c *Config, v any) error {
		n, ok := v.(float64)
		if !ok || n != float64(int(n)) || n < 1 || n > 65535 {
			return errors.New("a port from 1 to 65535 is allowed")
		}
		*at(c) = int(n)
		return nil
	}
}

// wireguardPort accepts a port that has one behind it.
func wireguardPort(c *Config, v any) error {
	n, ok := v.(float64)
	if !ok || n != float64(int(n)) || n < 1 || n > 65534 {
		return errors.New("a port from 1 to 65534 is allowed")
	}
	c.PodNetwork.WireGuardPort = int(n)
	return nil
}

// metricsPort accepts 0, and a port that no component of a node uses.
func metricsPort(c *Config, v any) error {
	n, ok := v.(float64)
	if !ok || n != float64(int(n)) || n < 0 || n > 65535 {
		return errors.New("0 (none) or a port from 1 to 65535 is allowed")
	}
	if user := model.ReservedPort(model.TCP, uint16(n)); user != "" {
		return fmt.Errorf("that is a port of %s; another one is allowed, such as 10247", user)
	}
	c.Metrics.Port = int(n)
	return nil
}

func level(c *Config, v any) error {
	s, _ := v.(string)
	l, err := logging.ParseLevel(s)
	if err != nil {
		return fmt.Errorf("allowed: %s", strings.Join(logging.Levels(), ", "))
	}
	c.LogLevel = l
	return nil
}

func logFormat(c *Config, v any) error {
	if v != "text" && v != "json" {
		return errors.New("allowed: text, json")
	}
	c.LogJSON = v == "json"
	return nil
}

func list[T any](at func(*Config) *[]T, parse func(string) (T, error), what string) setter {
	return func(c *Config, v any) error {
		items, ok := v.([]any)
		if !ok {
			return fmt.Errorf("a list of %s is allowed", what)
		}
		var out []T
		for i, item := range items {
			s, _ := item.(string)
			t, err := parse(s)
			if err != nil {
				return fmt.Errorf("item %d: a list of %s is allowed", i, what)
			}
			out = append(out, t)
		}
		*at(c) = out
		return nil
	}
}

// nameservers describes the items of lists of DNS servers.
const nameservers = "IP addresses, each with :port or without, or tls://IP@NAME"

// plainServers describes servers without TLS. The letter case of names is never randomized for servers with TLS.
const plainServers = "IP addresses, each with :port or without"

func plainServer(s string) (model.Nameserver, error) {
	n, err := model.ParseNameserver(s)
	if err == nil && n.TLS {
		err = errors.New("letter case is not randomized for servers with TLS")
	}
	return n, err
}

// table sets a map from DNS names to lists. Names become lower case with a final dot.
func table[T any](at func(*Config) *map[string][]T, parse func(string) (T, error), what string) setter {
	return func(c *Config, v any) error {
		tree, ok := v.(map[string]any)
		if !ok {
			return fmt.Errorf("DNS names are allowed, each with a list of %s", what)
		}
		out := map[string][]T{}
		for _, name := range slices.Sorted(maps.Keys(tree)) {
			if err := dnsName(name); err != nil {
				return fmt.Errorf("%q: %w", name, err)
			}
			var items []T
			if err := list(func(*Config) *[]T { return &items }, parse, what)(nil, tree[name]); err != nil {
				return fmt.Errorf("%q: %w", name, err)
			}
			if len(items) == 0 {
				return fmt.Errorf("%q: empty; at least one is needed of %s", name, what)
			}
			key := strings.ToLower(strings.TrimSuffix(name, ".")) + "."
			if _, ok := out[key]; ok {
				return fmt.Errorf("%q: duplicate name", name)
			}
			out[key] = items
		}
		*at(c) = out
		return nil
	}
}

// dnsName checks a DNS name, which can contain underscores.
func dnsName(s string) error {
	if len(strings.TrimSuffix(s, ".")) > 253 {
		return errors.New("a DNS name of at most 253 characters is allowed")
	}
	return domain(strings.ReplaceAll(s, "_", "-"))
}

func certificates(s string) error {
	if !x509.NewCertPool().AppendCertsFromPEM([]byte(s)) {
		return errors.New("certificates in PEM (BEGIN CERTIFICATE) are allowed")
	}
	return nil
}

func number(at func(*Config) *int, low, high int) setter {
	return func(c *Config, v any) error {
		n, ok := v.(float64)
		if !ok || n != float64(int(n)) || int(n) < low || int(n) > high {
			return fmt.Errorf("a number from %d to %d is allowed", low, high)
		}
		*at(c) = int(n)
		return nil
	}
}

// NoServerHeader is the value of ingress.serverHeader that removes the field.
const NoServerHeader = "none"

// product checks a value of the field Server (RFC 9110, 10.2.4); NoServerHeader is allowed.
func product(s string) error {
	for _, c := range s {
		if c < ' ' || c > '~' || len(s) > 128 || strings.TrimSpace(s) != s {
			return fmt.Errorf("up to 128 visible ASCII characters are allowed, or %q", NoServerHeader)
		}
	}
	return nil
}

// tlsVersion parses a version in quotation marks: as a number, 1.0 would be 1.
func tlsVersion(at func(*Config) *uint16) setter {
	return func(c *Config, v any) error {
		s, _ := v.(string)
		i := slices.Index([]string{"1.0", "1.1", "1.2", "1.3"}, s)
		if i < 0 {
			return errors.New(`allowed, in quotation marks: "1.0", "1.1", "1.2", "1.3"`)
		}
		*at(c) = tls.VersionTLS10 + uint16(i)
		return nil
	}
}

// nodePortAddresses reads CIDRs and keywords as kube-proxy does (Kubernetes 1.37).
func nodePortAddresses(c *Config, v any) error {
	items, ok := v.([]any)
	if !ok {
		return errNodePortAddresses
	}
	c.Service.NodePortAddresses, c.Service.NodePortPrimary = nil, false
	for i, item := range items {
		s, _ := item.(string)
		switch s {
		case "primary":
			c.Service.NodePortPrimary = true
		case "localhost":
			c.Service.NodePortAddresses = append(c.Service.NodePortAddresses,
				netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8))
		case "all":
			c.Service.NodePortAddresses = append(c.Service.NodePortAddresses, netip.PrefixFrom(netip.IPv4Unspecified(),
				0), netip.PrefixFrom(netip.IPv6Unspecified(), 0))
		default:
			p, err := apiaddr.ParsePrefix(s)
			if err != nil {
				return fmt.Errorf("item %d: %w", i, errNodePortAddresses)
			}
			c.Service.NodePortAddresses = append(c.Service.NodePortAddresses, p.Masked())
		}
	}
	return nil
}

var errNodePortAddresses = errors.New("a list of CIDRs, primary, localhost and all is allowed")

func network(s string) (netip.Prefix, error) {
	p, err := apiaddr.ParsePrefix(s)
	if err == nil && p != p.Masked() {
		err = fmt.Errorf("%s has host bits set; write %s", s, p.Masked())
	}
	return p, err
}

// secretName parses NAMESPACE/NAME; empty is allowed.
func secretName(at func(*Config) *model.Name) setter {
	return func(c *Config, v any) error {
		s, ok := v.(string)
		ns, name, cut := strings.Cut(s, "/")
		if !ok || s != "" && (!cut || domain(name) != nil || domain(ns) != nil || strings.Contains(ns, ".")) {
			return errors.New("NAMESPACE/NAME of a Secret is allowed")
		}
		*at(c) = model.Name{Namespace: ns, Name: name}
		return nil
	}
}

// labels sets a map of Kubernetes labels.
func labels(at func(*Config) *map[string]string) setter {
	const allowed = "labels are allowed, as in example.com/ingress: \"true\""
	return func(c *Config, v any) error {
		tree, ok := v.(map[string]any)
		if !ok {
			return errors.New(allowed)
		}
		out := map[string]string{}
		for _, key := range slices.Sorted(maps.Keys(tree)) {
			value, ok := tree[key].(string)
			if !ok || !isLabelKey(key) || value != "" && !isLabelName(value) {
				return fmt.Errorf("%q: %s", key, allowed)
			}
			out[key] = value
		}
		*at(c) = out
		return nil
	}
}

// isLabelKey reports whether s is NAME or DOMAIN/NAME, the syntax of Kubernetes label keys.
func isLabelKey(s string) bool {
	prefix, name, cut := strings.Cut(s, "/")
	if !cut {
		return isLabelName(s)
	}
	return len(prefix) <= 253 && domain(prefix) == nil && prefix == strings.ToLower(prefix) && isLabelName(name)
}

// isLabelName reports whether s is a valid label name, which is also the syntax of a non-empty label value.
func isLabelName(s string) bool {
	const ends = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	return s != "" && len(s) <= 63 && strings.Trim(s, ends+"-_.") == "" && strings.Contains(ends, s[:1]) &&
		strings.Contains(ends, s[len(s)-1:])
}
