package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	neturl "net/url"
	"slices"
	"strings"
	"time"
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

func domain(s string) error {
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return errors.New("a DNS name like cluster.local is allowed")
		}
	}
	return nil
}

// domainName is domain for a list.
func domainName(s string) (string, error) { return s, domain(s) }

// oneOf allows the built values; the others are known by name, and refused.
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

func level(c *Config, v any) error {
	s, ok := v.(string)
	if !ok || !slices.Contains([]string{"debug", "info", "warn", "error"}, s) {
		return errors.New("allowed: debug, info, warn, error")
	}
	return (*slog.Level)(&c.LogLevel).UnmarshalText([]byte(s))
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

func upstream(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.ParseAddrPort(s)
}

func network(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err == nil && p != p.Masked() {
		err = fmt.Errorf("%s has host bits set; write %s", s, p.Masked())
	}
	return p, err
}
