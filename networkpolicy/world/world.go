// Package world is a small cluster in which every packet can be tried: namespaces u, v
// and w, pods a, b and c in each, ports 80, 81 and 82 of TCP and UDP, and one address
// outside. sets/*.txt holds policies for it, and what passes then, reasoned by hand and
// never computed.
//
// A file is read line by line; # begins a comment:
//
//	== NAME                     a new set: no policies, all labels as at first
//	policy NS/NAME: SPEC        a NetworkPolicy; SPEC is YAML, of one line or indented lines below
//	delete NS/NAME              takes a policy out
//	label NS/POD KEY=VALUE KEY- sets and takes out labels of a pod; of a namespace: label NS …
//	ports NS/POD NAME=tcp81 …   replaces the names of the pod's ports
//	in PODS: WHAT               what reaches these pods; those that no line names are open
//	out PODS: WHAT              what leaves these pods
//	then                        a next step: policies, labels and ports go on, in and out begin anew
//
// WHAT is "none", or allowed traffic as "tcp80,udp81 from v/*,outside; any from u/a" ("to"
// in an out line). "tcp" is all of its ports, "any" is every protocol; ipv4 or ipv6 before them
// is for that family only. PODS are u/a, u/*, */a, */* for all pods, outside, and all for all of these.
// A packet passes when both ends let it; a pod always reaches itself.
package world

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
)

// Node is where all pods are.
const Node = "node1"

// Outside is the name of the address outside of the cluster.
const Outside = "outside"

// Names are the pods, as NS/POD, in order, and the last is Outside.
func Names() []string {
	var out []string
	for _, ns := range []string{"u", "v", "w"} {
		for _, pod := range []string{"a", "b", "c"} {
			out = append(out, ns+"/"+pod)
		}
	}
	return append(out, Outside)
}

// Ports are those that every pod serves with TCP and UDP.
func Ports() []uint16 { return []uint16{80, 81, 82} }

// Addr is the address of one of Names: 10.244.1.1 and fd00:244::1:1 for u/a, 10.244.3.2
// and fd00:244::3:2 for w/b; outside 192.0.2.1 and 2001:db8::1.
func Addr(name string, is6 bool) netip.Addr {
	i := slices.Index(Names(), name)
	ns, pod := byte(i/3+1), byte(i%3+1)
	switch {
	case name == Outside && is6:
		return netip.MustParseAddr("2001:db8::1")
	case name == Outside:
		return netip.MustParseAddr("192.0.2.1")
	case is6:
		return netip.AddrFrom16([16]byte{0xfd, 0, 2, 0x44, 13: ns, 15: pod})
	}
	return netip.AddrFrom4([4]byte{10, 244, ns, pod})
}

// Local is what the node knows: its pods' addresses.
func Local() networkpolicy.NodeInputs {
	l := networkpolicy.NodeInputs{Node: Node, Pods: map[netip.Addr]model.Name{}}
	for _, n := range Names() {
		if n != Outside {
			l.Pods[Addr(n, false)], l.Pods[Addr(n, true)] = nameOf(n), nameOf(n)
		}
	}
	return l
}

func nameOf(s string) model.Name {
	ns, name, _ := strings.Cut(s, "/")
	return model.Name{Namespace: ns, Name: name}
}

// pods are those of the world at first: u/a is labelled pod=a and ns=u, its ports are
// called web (TCP 80), alt (TCP 81), dns (UDP 80) and last (TCP 82); so are all others'.
func pods() map[string]*model.Pod {
	out := map[string]*model.Pod{}
	for _, n := range Names() {
		if n == Outside {
			continue
		}
		name := nameOf(n)
		out[n] = &model.Pod{Name: name, Node: Node, UID: n, Labels: map[string]string{"pod": name.Name,
			"ns": name.Namespace},
			IPs: []netip.Addr{Addr(n, false), Addr(n, true)},
			Ports: []model.NamedPort{{Name: "web", Protocol: model.TCP, Port: 80},
				{Name: "alt", Protocol: model.TCP, Port: 81},
				{Name: "dns", Protocol: model.UDP, Port: 80}, {Name: "last", Protocol: model.TCP, Port: 82}}}
	}
	return out
}

// namespaces are labelled ns=u and as the API server does.
func namespaces() map[string]*model.Namespace {
	out := map[string]*model.Namespace{}
	for _, n := range []string{"u", "v", "w"} {
		out[n] = &model.Namespace{Name: n, Labels: map[string]string{"ns": n, "kubernetes.io/metadata.name": n}}
	}
	return out
}

// Set is policies and what passes then, in one or several steps.
type Set struct {
	Name  string
	Steps []Step
}

// Step is the whole state of the world, and what passes in it. Its objects must not
// be changed.
type Step struct {
	// At is the file and line where it ends.
	At         string
	Pods       map[string]*model.Pod
	Namespaces map[string]*model.Namespace
	Policies   map[string]*model.NetworkPolicy
	in, out    map[string][]clause // of isolated pods
}

// clause allows traffic with some others.
type clause struct {
	is4, is6  bool
	protocols []protocol
	others    []string
}

// protocol is one port, all of a protocol (port 0), or everything (proto 0).
type protocol struct {
	proto model.Protocol
	port  uint16
}

// Put makes the store hold this step, whatever it held. Only what differs is written, as
// an API server would tell of it.
func (s Step) Put(store *model.Store) error {
	now := store.Snapshot()
	return store.Write(func(w *model.Writer) {
		for _, n := range w.Names(model.NetworkPolicyKind) {
			if s.Policies[n.String()] == nil {
				w.Delete(model.NetworkPolicyKind, n)
			}
		}
		for _, n := range s.Namespaces {
			if old, _ := now.Namespace(n.Name); old != n {
				w.PutNamespace(n)
			}
		}
		for _, p := range s.Pods {
			if old, _ := now.Pod(p.Name); old != p {
				w.PutPod(p)
			}
		}
		for _, p := range s.Policies {
			if old, _ := now.NetworkPolicy(p.Name); old != p {
				w.PutNetworkPolicy(p)
			}
		}
	})
}

// Allowed says what was reasoned: may from, one of Names, send this to another. The port
// does not matter for protocols without ports.
func (s Step) Allowed(from, to string, is6 bool, proto model.Protocol, port uint16) bool {
	return from == to || allows(s.out, from, to, is6, proto, port) && allows(s.in, to, from, is6, proto, port)
}

func allows(isolated map[string][]clause, self, other string, is6 bool, proto model.Protocol, port uint16) bool {
	clauses, ok := isolated[self]
	return !ok || slices.ContainsFunc(clauses, func(c clause) bool {
		family := is6 && c.is6 || !is6 && c.is4
		return family && slices.Contains(c.others, other) && slices.ContainsFunc(c.protocols, func(p protocol) bool {
			return p.proto == 0 || p.proto == proto && (p.port == 0 || p.port == port)
		})
	})
}

// Probe is a packet to try, and whether it must pass.
type Probe struct {
	// From and To are of Names.
	From, To string
	IPv6     bool
	Protocol model.Protocol
	Port     uint16
	Want     bool
}

// String reads "u/a to v/b TCP 80, IPv6".
func (p Probe) String() string {
	family := "IPv4"
	if p.IPv6 {
		family = "IPv6"
	}
	return fmt.Sprintf("%s to %s %s %d, %s", p.From, p.To, p.Protocol, p.Port, family)
}

// Probes yields every packet of TCP and UDP between two of Names. One between outside
// and itself is none.
func (s Step) Probes() iter.Seq[Probe] { return s.ProbesOf(model.TCP, model.UDP) }

// ProbesOf is Probes of other protocols.
func (s Step) ProbesOf(protocols ...model.Protocol) iter.Seq[Probe] {
	return func(yield func(Probe) bool) {
		for _, is6 := range []bool{false, true} {
			for _, from := range Names() {
				for _, to := range Names() {
					if from == Outside && to == Outside {
						continue
					}
					for _, proto := range protocols {
						for _, port := range Ports() {
							if !yield(Probe{from, to, is6, proto, port, s.Allowed(from, to, is6, proto, port)}) {
								return
							}
						}
					}
				}
			}
		}
	}
}
