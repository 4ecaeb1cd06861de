package deploy

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// Account is a service account of the manifest.
type Account struct{ Namespace, Name string }

// User returns the account's user name: system:serviceaccount:NAMESPACE:NAME.
func (a Account) User() string { return "system:serviceaccount:" + a.Namespace + ":" + a.Name }

// Rights returns what the RBAC objects of a manifest allow an account in a namespace, a line for each kind of object
// and name: "RESOURCE [NAME] VERB VERB", sorted. Rights that Kubernetes gives every account are left out.
func Rights(manifest []byte, a Account, namespace string) ([]string, error) {
	roles, bindings, err := rbacOf(manifest)
	if err != nil {
		return nil, err
	}
	verbs := map[string][]string{}
	for _, b := range bindings {
		if b.Namespace != "" && b.Namespace != namespace || !slices.ContainsFunc(b.Subjects,
			func(s rbacv1.Subject) bool {
				return s.Kind == rbacv1.ServiceAccountKind && s.Namespace == a.Namespace && s.Name == a.Name
			}) {
			continue
		}
		in := b.Namespace
		if b.RoleRef.Kind == "ClusterRole" {
			in = ""
		}
		role, ok := roles[in+"/"+b.RoleRef.Name]
		if !ok {
			return nil, fmt.Errorf("binding %s: no %s %s in the manifest", b.Name, b.RoleRef.Kind, b.RoleRef.Name)
		}
		for _, r := range role {
			for _, what := range objectsOf(r) {
				verbs[what] = append(verbs[what], r.Verbs...)
			}
		}
	}
	var out []string
	for what, list := range verbs {
		slices.Sort(list)
		out = append(out, what+" "+strings.Join(slices.Compact(list), " "))
	}
	slices.SortFunc(out, cmp.Compare)
	return out, nil
}

// objectsOf lists the objects of a rule, as `kubectl auth can-i --list` names them.
func objectsOf(r rbacv1.PolicyRule) (out []string) {
	names := r.ResourceNames
	if len(names) == 0 {
		names = []string{""}
	}
	for _, group := range r.APIGroups {
		for _, resource := range r.Resources {
			what, sub, _ := strings.Cut(resource, "/")
			if group != "" {
				what += "." + group
			}
			if sub != "" {
				what += "/" + sub
			}
			for _, name := range names {
				out = append(out, what+" ["+name+"]")
			}
		}
	}
	return out
}

// rbacOf returns the rules of roles by "NAMESPACE/NAME", and the bindings. Those of the cluster have no namespace.
func rbacOf(manifest []byte) (map[string][]rbacv1.PolicyRule, []rbacv1.RoleBinding, error) {
	roles := map[string][]rbacv1.PolicyRule{}
	var bindings []rbacv1.RoleBinding
	for _, d := range bytes.Split(manifest, []byte("\n---\n")) {
		var kind struct {
			Kind string `json:"kind"`
		}
		if err := yaml.Unmarshal(d, &kind); err != nil {
			return nil, nil, fmt.Errorf("manifest: %w", err)
		}
		switch kind.Kind {
		case "ClusterRole", "Role":
			var r rbacv1.Role
			if err := yaml.UnmarshalStrict(d, &r); err != nil {
				return nil, nil, fmt.Errorf("manifest: %w", err)
			}
			roles[r.Namespace+"/"+r.Name] = r.Rules
		case "ClusterRoleBinding", "RoleBinding":
			var b rbacv1.RoleBinding
			if err := yaml.UnmarshalStrict(d, &b); err != nil {
				return nil, nil, fmt.Errorf("manifest: %w", err)
			}
			bindings = append(bindings, b)
		}
	}
	return roles, bindings, nil
}

// everyone returns the lines of `kubectl auth can-i --list` that Kubernetes gives every account.
var everyone = []string{"selfsubjectreviews.authentication.k8s.io", "selfsubjectaccessreviews.authorization.k8s.io",
	"selfsubjectrulesreviews.authorization.k8s.io"}

// ParseRights converts the output of `kubectl auth can-i --list` to lines as those of Rights, without the rights of
// every account.
func ParseRights(out string) ([]string, error) {
	verbs := map[string][]string{}
	for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
		if i == 0 && strings.HasPrefix(line, "Resources") || strings.TrimSpace(line) == "" ||
			strings.HasPrefix(line, " ") {
			continue // the heading, and rules of URLs such as /healthz
		}
		fields := strings.FieldsFunc(line, func(r rune) bool { return r == '[' || r == ']' })
		parts := strings.SplitAfter(line, "]")
		if len(fields) < 2 || len(parts) < 4 {
			return nil, fmt.Errorf("kubectl auth can-i --list: line %d is %q", i+1, line)
		}
		what, urls, _ := strings.Cut(parts[0], "[")
		what = strings.TrimSpace(what)
		if urls != "]" || slices.Contains(everyone, what) {
			continue
		}
		names := strings.Fields(strings.Trim(strings.TrimSpace(parts[1]), "[]"))
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			key := what + " [" + name + "]"
			verbs[key] = append(verbs[key], strings.Fields(strings.Trim(strings.TrimSpace(parts[2]), "[]"))...)
		}
	}
	var lines []string
	for what, list := range verbs {
		slices.Sort(list)
		lines = append(lines, what+" "+strings.Join(slices.Compact(list), " "))
	}
	slices.Sort(lines)
	return lines, nil
}
