package ingress

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
)

// Names and values of fields that ingress-nginx takes from ConfigMaps.
var (
	configMapField = regexp.MustCompile(`^[a-zA-Z\d\-_]+$`)
	configMapValue = regexp.MustCompile(`^[a-zA-Z\d_ :;.,\\/"'?!(){}\[\]@<>=\-+*#$&\x60|~^%]+$`)
)

// configMapAnnotations name ConfigMaps. If one is missing or has an invalid field, the paths are closed, as in
// ingress-nginx: a field may be what protects a site.
var configMapAnnotations = []string{"auth-proxy-set-headers", "custom-headers"}

func configMaps() []annotation {
	return []annotation{
		{name: "custom-headers", guard: true, read: func(p *parser, v string) error {
			c, err := p.configMap(v)
			if err != nil {
				return err
			}
			fields, err := p.customFields(c)
			// Before those of Wayleave's own annotation, which then take precedence.
			p.response.Fields = slices.Concat(fields, p.response.Fields)
			return err
		}, note: "a ConfigMap in the Ingress's own namespace, with fields that ingress.globalAllowedResponseHeaders " +
			"lists; at most 64 of 4 KiB, without variables. A missing ConfigMap and one with another field close the " +
			"paths"},
		{name: "auth-proxy-set-headers", guard: true, read: func(p *parser, v string) error {
			if p.values["auth-url"] == "" {
				p.bad(nginxPrefix+"auth-proxy-set-headers", "has no effect without auth-url")
				return nil
			}
			c, err := p.configMap(v)
			if err != nil {
				return err
			}
			fields, err := p.askedFields(c)
			p.authURL.Fields = slices.Concat(fields, p.authURL.Fields)
			return err
		}, note: "a ConfigMap in the Ingress's own namespace; at most 64 fields of 4 KiB for the server of auth-url; " +
			"without a value the field is removed; variables: " + variables + ". A missing ConfigMap and one with an " +
			"invalid field close the paths"},
	}
}

// ConfigMapsOf returns the ConfigMaps that an Ingress names. No others are read.
func ConfigMapsOf(i *model.Ingress) (out []model.Name) {
	for _, key := range configMapAnnotations {
		n, err := ownName(i, strings.TrimSpace(i.Annotations[nginxPrefix+key]), "ConfigMap")
		if err == nil && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// configMap returns the ConfigMap that an annotation names.
func (p *parser) configMap(v string) (*model.ConfigMap, error) {
	n, err := ownName(p.in, v, "ConfigMap")
	if err != nil {
		return nil, err
	}
	c, ok := p.snap.ConfigMap(n)
	switch {
	case !ok || c.Missing:
		return nil, fmt.Errorf("ConfigMap %s does not exist", n)
	case c.Wrong != "":
		return nil, fmt.Errorf("ConfigMap %s %s", n, c.Wrong)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Data)) {
		if !configMapField.MatchString(name) {
			return nil, fmt.Errorf("ConfigMap %s: %q is not the name of a header field", n, name)
		}
		if slices.Contains(framing, strings.ToLower(name)) {
			return nil, fmt.Errorf("ConfigMap %s: %q is a field that only the proxy may set", n, name)
		}
	}
	return c, nil
}

// customFields returns the fields of custom-headers. Their values are literal.
func (p *parser) customFields(c *model.ConfigMap) (out []schema.Field, err error) {
	for _, name := range slices.Sorted(maps.Keys(c.Data)) {
		v := c.Data[name]
		if !configMapValue.MatchString(v) {
			return nil, fmt.Errorf("ConfigMap %s: data[%s] is empty or has a character that no value may have", c.Name,
				name)
		}
		if !slices.ContainsFunc(p.settings.ResponseHeaders, func(a string) bool { return strings.EqualFold(a, name) }) {
			return nil, fmt.Errorf("ConfigMap %s: ingress.globalAllowedResponseHeaders does not list %q", c.Name, name)
		}
		out = append(out, schema.Field{Name: name, Value: strings.ReplaceAll(v, "$", "${literal_dollar}")})
	}
	return out, nil
}

// askedFields returns the fields of auth-proxy-set-headers. Their values may have variables.
func (p *parser) askedFields(c *model.ConfigMap) (out []schema.Field, err error) {
	for _, name := range slices.Sorted(maps.Keys(c.Data)) {
		err := fieldTemplate(func(_ *parser, v string) { out = append(out, schema.Field{Name: name, Value: v}) })(p,
			c.Data[name])
		if err != nil {
			return nil, fmt.Errorf("ConfigMap %s: data[%s]: %w", c.Name, name, err)
		}
	}
	return out, nil
}
