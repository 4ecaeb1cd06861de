// Package objectref reads names of objects as people write them on the command line. All commands write them alike:
// KIND/NAMESPACE/NAME, such as pod/default/web.
package objectref

import (
	"fmt"
	"slices"
	"strings"
)

// Kind is a kind of objects that commands take.
type Kind string

// The kinds, as they are written.
const (
	Pod        Kind = "pod"
	Service    Kind = "svc"
	Deployment Kind = "deploy"
	DaemonSet  Kind = "ds"
	Node       Kind = "node"
)

// Ref is the name of an object.
type Ref struct {
	Kind Kind
	// Namespace is empty for a Node.
	Namespace, Name string
}

// String writes the name as Parse reads it.
func (r Ref) String() string {
	if r.Kind == Node {
		return string(r.Kind) + "/" + r.Name
	}
	return string(r.Kind) + "/" + r.Namespace + "/" + r.Name
}

// Path is NAMESPACE/NAME.
func (r Ref) Path() string { return r.Namespace + "/" + r.Name }

// spellings are the words for a kind that kubectl takes.
func spellings() map[Kind][]string {
	return map[Kind][]string{
		Pod:        {"pod", "pods", "po"},
		Service:    {"svc", "service", "services"},
		Deployment: {"deploy", "deployment", "deployments"},
		DaemonSet:  {"ds", "daemonset", "daemonsets"},
		Node:       {"node", "nodes", "no"},
	}
}

// Kinds are all kinds.
func Kinds() []Kind { return []Kind{Pod, Service, Deployment, DaemonSet, Node} }

func kindOf(word string) (Kind, bool) {
	for k, words := range spellings() {
		if slices.Contains(words, word) {
			return k, true
		}
	}
	return "", false
}

// Parse reads KIND/NAMESPACE/NAME, or KIND/NAME in the default namespace. Without a kind, NAMESPACE/NAME is a pod.
// Kinds other than those allowed are an error.
func Parse(text, namespace string, allowed ...Kind) (Ref, error) {
	r, err := parse(text, namespace)
	if err != nil {
		return Ref{}, fmt.Errorf("%q is %w; %s is allowed", text, err, Forms(allowed...))
	}
	if !slices.Contains(allowed, r.Kind) {
		return Ref{}, fmt.Errorf("%q is a %s; %s is allowed", text, r.Kind, Forms(allowed...))
	}
	return r, nil
}

func parse(text, namespace string) (Ref, error) {
	parts := strings.Split(text, "/")
	kind, named := kindOf(parts[0])
	var r Ref
	switch {
	case len(parts) == 3 && named && kind != Node:
		r = Ref{kind, parts[1], parts[2]}
	case len(parts) == 2 && kind == Node:
		r = Ref{kind, "", parts[1]}
	case len(parts) == 2 && named && namespace != "":
		r = Ref{kind, namespace, parts[1]}
	case len(parts) == 2:
		r = Ref{Pod, parts[0], parts[1]}
	default:
		return r, fmt.Errorf("no name of an object")
	}
	if r.Name == "" || r.Namespace == "" && r.Kind != Node {
		return r, fmt.Errorf("no complete name")
	}
	return r, nil
}

// Forms says how names of the kinds are written.
func Forms(allowed ...Kind) string {
	var out []string
	for _, k := range allowed {
		if k == Node {
			out = append(out, "node/NAME")
		} else {
			out = append(out, string(k)+"/NAMESPACE/NAME")
		}
	}
	return strings.Join(out, " or ")
}
