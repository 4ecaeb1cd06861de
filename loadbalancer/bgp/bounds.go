package bgp

import (
	"fmt"
	"slices"
	"strings"
)

// bound takes out what the process would refuse the whole State for, and says so: one object must not cost the others
// their sessions.
func (p *planner) bound() {
	seen := map[string]string{}
	p.out.Sessions = slices.DeleteFunc(p.out.Sessions, func(s Session) bool {
		other, taken := seen[s.remote()]
		if taken {
			p.session(s.Name, fmt.Sprintf("peer %s: %s has a session with it; there is one of a node with a peer",
				s.remote(), other))
			return true
		}
		seen[s.remote()] = s.Name
		return false
	})
	if n := len(p.out.Sessions); n > MaxSessions {
		for _, s := range p.out.Sessions[MaxSessions:] {
			p.session(s.Name, fmt.Sprintf("the node has %d sessions; %d are allowed, and this is none of them", n,
				MaxSessions))
		}
		p.out.Sessions = p.out.Sessions[:MaxSessions]
	}
	p.out.Classes = slices.DeleteFunc(p.out.Classes, func(c Class) bool {
		wrong := c.LocalPref != nil && *c.LocalPref == 0
		if wrong {
			p.class(c.Name, "spec.localPreference",
				"0 is not supported; 1 to 4294967295 are; nothing is announced for it")
		}
		return wrong
	})
	if n := len(p.out.Classes); n > MaxClasses {
		for _, c := range p.out.Classes[MaxClasses:] {
			p.class(c.Name, "spec", fmt.Sprintf(
				"there are %d advertisements; %d are allowed, and nothing is announced for "+
					"this one", n, MaxClasses))
		}
		p.out.Classes = p.out.Classes[:MaxClasses]
	}
	if n := len(p.out.Paths); n > MaxPaths {
		p.problem("Node", p.Node, "", fmt.Sprintf(
			"%d prefixes are to be announced; %d are allowed, the first by address",
			n, MaxPaths))
		p.out.Paths = p.out.Paths[:MaxPaths]
	}
}

// session reports a problem of the object that asks for a session.
func (p *planner) session(name, reason string) {
	kind, object, _ := strings.Cut(name, " ")
	p.problem(kind, object, "spec", reason)
}

// class is session for an advertisement.
func (p *planner) class(name, field, reason string) {
	kind, object, _ := strings.Cut(name, " ")
	p.problem(kind, object, field, reason)
}
