package server

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"wayleave.dev/dns/forward"
	"wayleave.dev/dns/schema"
	"wayleave.dev/model"
)

// Step is one query of a walk.
type Step struct {
	Name  string
	Reply *dns.Msg
	// Source is where the answer came from, for display.
	Source string
}

// Walk does what a resolver in the caller's pod would do for name: one query after the other until one returns a record
// of the type. A name with a final dot is queried unchanged; one with at least as many dots as ndots is tried unchanged
// first.
func (s *Server) Walk(ctx context.Context, c schema.Caller, name string, qtype uint16) []Step {
	var out []Step
	for _, n := range s.names(c, name) {
		limit, cancel := context.WithTimeout(ctx, forward.Patience)
		inner, sources := traced(limit)
		q := new(dns.Msg).SetQuestion(n, qtype)
		m := s.resolve(inner, q, c, 0)
		cancel()
		out = append(out, Step{n, m, sources.String()})
		if slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == qtype }) ||
			ctx.Err() != nil {
			break
		}
	}
	return out
}

// names returns the names of a walk, in order.
func (s *Server) names(c schema.Caller, name string) (out []string) {
	if !strings.HasSuffix(name, ".") {
		settings := s.settings.Load()
		for _, suffix := range c.Search(first(settings.Domains), settings.Search) {
			out = append(out, dns.Fqdn(strings.TrimSuffix(name+"."+suffix, ".")))
		}
	}
	at := len(out)
	if strings.Count(name, ".") >= c.NDots {
		at = 0
	}
	return slices.Insert(out, at, dns.Fqdn(name))
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// pod finds a pod of this node, with its addresses in order.
func (t *Callers) pod(n model.Name) (c schema.Caller, addrs []netip.Addr) {
	for a, have := range t.all() {
		if have.Pod == n {
			c, addrs = have.Caller, append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return c, addrs
}

// explain writes the walk of a pod for display.
func (s *Server) explain(ctx context.Context, w io.Writer, pod model.Name, name string, qtype uint16) error {
	c, addrs := s.callers.pod(pod)
	if len(addrs) == 0 {
		return fmt.Errorf(
			"pod %s is not known by address to this node's DNS (%d addresses are): run the command on the "+
				"pod's node; pods with the node's network, and all pods while the agent is away, are not known", pod,
			len(s.callers.all()))
	}
	var lines strings.Builder
	settings := s.settings.Load()
	autopath := "off"
	switch {
	case settings.Autopath && c.Usual():
		autopath = "on"
	case settings.Autopath:
		autopath = "not for its search list"
	}
	fmt.Fprintf(&lines, "pod %s, %s: search %s, ndots %d, autopath %s\n", pod, words(addrs),
		cmp.Or(strings.Join(c.Search(first(settings.Domains), settings.Search), " "), "none"), c.NDots, autopath)
	for i, step := range s.Walk(ctx, c, name, qtype) {
		fmt.Fprintf(&lines, "%d. %s %s: %s from %s\n", i+1, step.Name, dns.TypeToString[qtype],
			dns.RcodeToString[step.Reply.Rcode], cmp.Or(step.Source, "the server itself"))
		for _, rr := range step.Reply.Answer {
			fmt.Fprintf(&lines, "   %s\n", strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	_, err := io.WriteString(w, lines.String())
	return err
}

func words[T fmt.Stringer](list []T) string {
	var out []string
	for _, x := range list {
		out = append(out, x.String())
	}
	return strings.Join(out, " ")
}
