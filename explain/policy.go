// Package explain describes in words what Wayleave does and why. It is pure: it reads a snapshot and prints, and
// changes nothing.
package explain

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"wayleave.dev/internal/objectref"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
)

// Question names source and destination of a packet as the user wrote them.
type Question struct {
	From, To End
	Protocol model.Protocol
	Port     uint16
}

// End is a pod by name, or an address.
type End struct {
	Pod  model.Name
	Addr netip.Addr
}

// ParseQuestion parses FROM and TO:PORT/PROTO. A pod is written as for objectref, an address with a port is
// 192.0.2.1:80 or [2001:db8::1]:80, and the protocol defaults to TCP. A pod without a namespace is in the given one.
func ParseQuestion(from, to, namespace string) (q Question, err error) {
	if q.From, err = parseEnd(from, namespace); err != nil {
		return q, fmt.Errorf("FROM: %w", err)
	}
	at := strings.LastIndex(to, ":")
	if at < 0 || strings.HasSuffix(to, "]") {
		return q, fmt.Errorf("TO: %q has no port; write it as %s:80/TCP", to, to)
	}
	port, proto, ok := strings.Cut(to[at+1:], "/")
	if !ok {
		proto = "TCP"
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return q, fmt.Errorf("TO: %q is not a port; 1 to 65535 are allowed", port)
	}
	q.Port = uint16(n)
	for _, p := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		if strings.EqualFold(proto, p.String()) {
			q.Protocol = p
		}
	}
	if q.Protocol == 0 {
		return q, fmt.Errorf("TO: %q is not a protocol; TCP, UDP and SCTP are allowed", proto)
	}
	if q.To, err = parseEnd(to[:at], namespace); err != nil {
		return q, fmt.Errorf("TO: %w", err)
	}
	return q, nil
}

func parseEnd(s, namespace string) (End, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		if a.Zone() != "" {
			return End{}, fmt.Errorf("%q has a zone, which policies ignore", s)
		}
		return End{Addr: a.Unmap()}, nil
	}
	pod, err := objectref.Parse(s, namespace, objectref.Kinds()...)
	if err != nil {
		return End{}, fmt.Errorf("%q is neither a pod (pod/NAMESPACE/NAME) nor an address", s)
	}
	if pod.Kind != objectref.Pod {
		return End{}, fmt.Errorf("%q is a %s, and policies see its pods only; pod/NAMESPACE/NAME is allowed", s,
			pod.Kind)
	}
	return End{Pod: model.Name{Namespace: pod.Namespace, Name: pod.Name}}, nil
}

// Policy answers a question about NetworkPolicies: the verdict and its reasons, in words. Ends with addresses of both
// families are evaluated for each; allowed is true if both pass. The error says why there is no answer.
func Policy(v model.Snapshot, q Question) (text string, allowed bool, err error) {
	from, err := addresses(v, q.From)
	if err != nil {
		return "", false, fmt.Errorf("FROM: %w", err)
	}
	to, err := addresses(v, q.To)
	if err != nil {
		return "", false, fmt.Errorf("TO: %w", err)
	}
	// With Ingress disabled nothing sends from these addresses.
	local := networkpolicy.NodeInputs{DNS: dnsAddresses(v), Ingress: true}
	allowed = true
	for _, a := range from {
		for _, b := range to {
			if a.Is4() != b.Is4() {
				continue
			}
			f, t := networkpolicy.Identify(v, local, a), networkpolicy.Identify(v, local, b)
			verdict := networkpolicy.Evaluate(v, f, t, q.Protocol, q.Port)
			text += answer(q, f, t, verdict)
			allowed = allowed && verdict.Allowed
		}
	}
	if text == "" {
		return "", false, errors.New("FROM and TO have no address family in common")
	}
	return text, allowed, nil
}

func addresses(v model.Snapshot, e End) ([]netip.Addr, error) {
	if e.Pod == (model.Name{}) {
		return []netip.Addr{e.Addr}, virtual(v, e.Addr)
	}
	p, ok := v.Pod(e.Pod)
	if !ok {
		return nil, fmt.Errorf("pod %s does not exist, or has ended", e.Pod)
	}
	if len(p.IPs) == 0 {
		return nil, fmt.Errorf("pod %s has no address yet", e.Pod)
	}
	return p.IPs, nil
}

// virtual refuses addresses of Services: policies see the pod behind them. kube-dns is the exception.
func virtual(v model.Snapshot, a netip.Addr) error {
	for s := range v.Services() {
		for _, vip := range s.ClusterIPs {
			if vip == a && s.Name != dnsService() {
				return fmt.Errorf("%s is the address of Service %s; policies see the pod behind it: use that pod", a,
					s.Name)
			}
		}
	}
	return nil
}

func dnsService() model.Name { return model.Name{Namespace: "kube-system", Name: "kube-dns"} }

func dnsAddresses(v model.Snapshot) []netip.Addr {
	if s, ok := v.Service(dnsService()); ok {
		return s.ClusterIPs
	}
	return nil
}

func answer(q Question, from, to networkpolicy.Party, v networkpolicy.Verdict) string {
	var b strings.Builder
	word := "denied"
	if v.Allowed {
		word = "allowed"
	}
	fmt.Fprintf(&b, "%s: %s to %s, %s %d\n", word, who(from), who(to), q.Protocol, q.Port)
	if v.Always != "" {
		fmt.Fprintf(&b, "  %s, regardless of policies\n", v.Always)
		return b.String()
	}
	half(&b, networkpolicy.Egress, from, v.Egress)
	half(&b, networkpolicy.Ingress, to, v.Ingress)
	return b.String()
}

func who(p networkpolicy.Party) string {
	switch {
	case p.DNS:
		return fmt.Sprintf("kube-dns (%s)", p.Addr)
	case p.Pod != nil:
		return fmt.Sprintf("pod %s (%s)", p.Pod.Name, p.Addr)
	case p.Proxy != "":
		return fmt.Sprintf("the ingress proxy of node %s (%s)", p.Proxy, p.Addr)
	case p.Node != "":
		return fmt.Sprintf("node %s (%s)", p.Node, p.Addr)
	}
	return p.Addr.String()
}

func half(b *strings.Builder, d networkpolicy.Direction, p networkpolicy.Party, h networkpolicy.Half) {
	field := strings.ToLower(d.String())
	at := "  " + field + ": "
	switch {
	case p.Pod == nil:
		fmt.Fprintf(b, "%s%s is not a pod of the pod network, so no policy applies to it\n", at, p.Addr)
		return
	case !h.Isolated:
		fmt.Fprintf(b, "%sno policy isolates pod %s: open\n", at, p.Pod.Name)
		return
	case h.Allowed:
		fmt.Fprintf(b, "%spod %s is isolated by %s, and a rule allows this\n", at, p.Pod.Name, list(h.Policies))
	default:
		fmt.Fprintf(b, "%spod %s is isolated by %s, and no rule allows this\n", at, p.Pod.Name, list(h.Policies))
	}
	rules := map[model.Name]bool{}
	for _, r := range h.Rules {
		rules[r.Policy] = true
		if r.Allows() || !h.Allowed { // omit rules that did not decide
			fmt.Fprintf(b, "    %s spec.%s[%d]: %s\n", r.Policy, field, r.Index, why(r))
		}
	}
	for _, p := range h.Policies {
		if !rules[p] && !h.Allowed {
			fmt.Fprintf(b, "    %s has no rules for %s\n", p, field)
		}
	}
}

func why(r networkpolicy.Rule) string {
	switch {
	case r.Allows():
		return "allows this"
	case r.Peer:
		return "is for this peer, but not for this port"
	}
	return "is not for this peer"
}

func list(names []model.Name) string {
	var out []string
	for _, n := range names {
		out = append(out, n.String())
	}
	return strings.Join(out, ", ")
}
