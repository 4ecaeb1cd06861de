package world

import (
	"embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"wayleave.dev/model"
	"wayleave.dev/source/manifest"
)

//go:embed sets/*.txt
var files embed.FS

// Sets reads all sets. An error names file and line.
func Sets() ([]Set, error) {
	entries, err := files.ReadDir("sets")
	if err != nil {
		return nil, err
	}
	var out []Set
	for _, e := range entries {
		raw, err := files.ReadFile("sets/" + e.Name())
		if err != nil {
			return nil, err
		}
		sets, err := Read(e.Name(), string(raw))
		if err != nil {
			return nil, err
		}
		out = append(out, sets...)
	}
	return out, nil
}

// Read reads sets from a text; file is for messages.
func Read(file, text string) ([]Set, error) {
	r := &reader{}
	var err error
	if r.store, err = model.NewStore(); err != nil {
		return nil, err
	}
	defer r.store.Close()
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		r.at = fmt.Sprintf("%s:%d", file, i+1)
		line, _, _ := strings.Cut(lines[i], "#")
		for i+1 < len(lines) && strings.HasPrefix(lines[i+1], " ") {
			i++
			line += "\n" + lines[i]
		}
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if err := r.line(line); err != nil {
			return nil, fmt.Errorf("%s: %w", r.at, err)
		}
	}
	r.end()
	return r.sets, nil
}

type reader struct {
	store *model.Store
	at    string
	sets  []Set
	step  Step
}

func (r *reader) line(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	if word == "==" {
		r.end()
		r.sets = append(r.sets, Set{Name: rest})
		r.step = Step{Pods: pods(), Namespaces: namespaces(), Policies: map[string]*model.NetworkPolicy{},
			in: map[string][]clause{}, out: map[string][]clause{}}
		return nil
	}
	if len(r.sets) == 0 {
		return fmt.Errorf("%q is before the first set", word)
	}
	switch word {
	case "then":
		r.end()
		r.step = Step{Pods: maps.Clone(r.step.Pods), Namespaces: maps.Clone(r.step.Namespaces),
			Policies: maps.Clone(r.step.Policies), in: map[string][]clause{}, out: map[string][]clause{}}
		return nil
	case "policy":
		return r.policy(rest)
	case "delete":
		if r.step.Policies[rest] == nil {
			return fmt.Errorf("there is no policy %s", rest)
		}
		delete(r.step.Policies, rest)
		return nil
	case "label":
		return r.label(strings.Fields(rest))
	case "ports":
		return r.ports(strings.Fields(rest))
	case "in":
		return r.expect(r.step.in, " from ", rest)
	case "out":
		return r.expect(r.step.out, " to ", rest)
	}
	return fmt.Errorf("%q is unknown; ==, policy, delete, label, ports, in, out and then are allowed", word)
}

// end closes a step.
func (r *reader) end() {
	if n := len(r.sets); n > 0 {
		r.step.At = r.at
		r.sets[n-1].Steps = append(r.sets[n-1].Steps, r.step)
	}
}

func (r *reader) policy(rest string) error {
	head, spec, ok := strings.Cut(rest, ":")
	name := nameOf(head)
	if !ok || r.step.Namespaces[name.Namespace] == nil {
		return fmt.Errorf("%q is not NS/NAME", head)
	}
	doc := fmt.Sprintf(
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: %s, name: %s}\nspec: %s\n",
		name.Namespace, name.Name, spec)
	problems, err := manifest.Read(r.store, head, strings.NewReader(doc))
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		return problems[0]
	}
	p, ok := r.store.Snapshot().NetworkPolicy(name)
	if !ok {
		return fmt.Errorf("policy %s was not read", head)
	}
	r.step.Policies[head] = p
	return nil
}

func (r *reader) label(words []string) error {
	if len(words) < 2 {
		return errors.New("label has no labels")
	}
	pod, ns := r.step.Pods[words[0]], r.step.Namespaces[words[0]]
	switch {
	case pod != nil:
		changed := *pod
		changed.Labels = relabel(pod.Labels, words[1:])
		r.step.Pods[words[0]] = &changed
	case ns != nil:
		r.step.Namespaces[words[0]] = &model.Namespace{Name: ns.Name, Labels: relabel(ns.Labels, words[1:])}
	default:
		return fmt.Errorf("label: %q is no pod and no namespace", words[0])
	}
	return nil
}

func relabel(labels map[string]string, words []string) map[string]string {
	labels = maps.Clone(labels)
	for _, w := range words {
		k, v, set := strings.Cut(w, "=")
		if set {
			labels[k] = v
		} else {
			delete(labels, strings.TrimSuffix(k, "-"))
		}
	}
	return labels
}

func (r *reader) ports(words []string) error {
	if len(words) == 0 || r.step.Pods[words[0]] == nil {
		return fmt.Errorf("ports: %q is no pod", words)
	}
	changed := *r.step.Pods[words[0]]
	changed.Ports = nil
	for _, w := range words[1:] {
		name, number, _ := strings.Cut(w, "=")
		p, err := parseProtocol(number)
		if err != nil {
			return err
		}
		changed.Ports = append(changed.Ports, model.NamedPort{Name: name, Protocol: p.proto, Port: p.port})
	}
	r.step.Pods[words[0]] = &changed
	return nil
}

// expect reads "PODS: WHAT" of an in or out line.
func (r *reader) expect(to map[string][]clause, word, rest string) error {
	head, what, ok := strings.Cut(rest, ":")
	if !ok {
		return fmt.Errorf("%q has no colon", rest)
	}
	pods, err := expand(head)
	if err != nil {
		return err
	}
	clauses := []clause{}
	for s := range strings.SplitSeq(what, ";") {
		s = strings.TrimSpace(s)
		if s == "none" {
			continue
		}
		c, err := parseClause(s, word)
		if err != nil {
			return err
		}
		clauses = append(clauses, c)
	}
	for _, p := range pods {
		if _, twice := to[p]; twice || p == Outside {
			return fmt.Errorf("%s is said twice, or is no pod", p)
		}
		to[p] = clauses
	}
	return nil
}

func parseClause(s, word string) (clause, error) {
	c := clause{is4: true, is6: true}
	if rest, ok := strings.CutPrefix(s, "ipv4 "); ok {
		s, c.is6 = rest, false
	} else if rest, ok := strings.CutPrefix(s, "ipv6 "); ok {
		s, c.is4 = rest, false
	}
	ports, others, ok := strings.Cut(s, word)
	if !ok {
		return c, fmt.Errorf("%q has no%s", s, word)
	}
	for p := range strings.SplitSeq(ports, ",") {
		parsed, err := parseProtocol(strings.TrimSpace(p))
		if err != nil {
			return c, err
		}
		c.protocols = append(c.protocols, parsed)
	}
	var err error
	c.others, err = expand(others)
	return c, err
}

func parseProtocol(s string) (protocol, error) {
	if s == "any" {
		return protocol{}, nil
	}
	for name, proto := range map[string]model.Protocol{"tcp": model.TCP, "udp": model.UDP, "sctp": model.SCTP} {
		number, ok := strings.CutPrefix(s, name)
		if !ok {
			continue
		}
		if number == "" {
			return protocol{proto, 0}, nil
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return protocol{}, fmt.Errorf("%q: %w", s, err)
		}
		return protocol{proto, uint16(n)}, nil
	}
	return protocol{}, fmt.Errorf("%q is not any, tcp, udp or sctp with a port", s)
}

// expand reads a list as "u/a,v/*,outside".
func expand(list string) ([]string, error) {
	var out []string
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		ns, pod, _ := strings.Cut(s, "/")
		n := len(out)
		for _, name := range Names() {
			of := nameOf(name)
			match := name != Outside && (ns == "*" || ns == of.Namespace) && (pod == "*" || pod == of.Name)
			if s == "all" || s == name || match {
				out = append(out, name)
			}
		}
		if len(out) == n {
			return nil, fmt.Errorf("%q are no pods", s)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
