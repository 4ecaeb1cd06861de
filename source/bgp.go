package source

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"wayleave.dev/api"
	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/model"
)

// Bounds of BGP objects, as in their definitions.
const (
	maxNames       = 256
	maxCommunities = 63
	maxNetworks    = 64
	maxPrefixes    = 1000000
	maxRangeBits   = 8                   // host bits of a range of peers
	minHold        = 3 * time.Second     // RFC 4271, section 4.2; without a hold time a dead peer is never noticed
	maxHold        = 65535 * time.Second // RFC 4271, section 4.2
	maxRestart     = 4095 * time.Second  // RFC 4724, section 3
	maxLongLived   = 4660 * time.Hour    // RFC 9494, section 3.1
)

// invalid is what a condition says of an object with these problems; empty for none.
func (c *checker) invalid() string {
	if len(c.problems) == 0 {
		return ""
	}
	return c.problems[0].Field + ": " + c.problems[0].Reason
}

// asn checks an ASN; 0 is one that is not set.
func (c *checker) asn(field string, n int64) uint32 {
	switch {
	case n == 0:
		return 0
	case n < 0 || n >= 1<<32-1:
		c.bad(field, "%d is not an ASN; 1 to 4294967294 are allowed", n)
	case n == 23456 || n == 65535:
		c.bad(field, "%d is reserved (RFC 6793, RFC 7300); any other ASN is allowed", n)
	default:
		return uint32(n)
	}
	return 0
}

// between checks a number; unset (0) becomes otherwise.
func (c *checker) between(field string, n, from, to, otherwise int64) int64 {
	if n == 0 {
		return otherwise
	}
	if n < from || n > to {
		c.bad(field, "%d is not allowed; %d to %d are", n, from, to)
		return otherwise
	}
	return n
}

// duration checks a duration; unset becomes otherwise.
func (c *checker) duration(field string, d *metav1.Duration, from, to, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	if d.Duration < from || d.Duration > to {
		c.bad(field, "%s is not allowed; %s to %s are", d.Duration, from, to)
		return otherwise
	}
	return d.Duration
}

// timers reads the durations of a session; those that are not set are model.Unset. Keepalives are sent three times
// within the hold time (RFC 4271, section 4.4).
func (c *checker) timers(in *api.BGPTimers) (out model.BGPTimers) {
	out.Hold = c.duration("spec.holdTime", in.HoldTime, minHold, maxHold, model.Unset)
	if h := out.Hold; h > 0 && h%time.Second != 0 {
		c.bad("spec.holdTime", "%s is not allowed; whole seconds are", h)
	}
	out.Keepalive = c.duration("spec.keepaliveTime", in.KeepaliveTime, time.Second, maxHold/3, model.Unset)
	if out.Hold > 0 && out.Keepalive > out.Hold/3 {
		c.bad("spec.keepaliveTime", "%s is not allowed; up to a third of spec.holdTime (%s) is",
			out.Keepalive, out.Hold)
	}
	out.Connect = c.duration("spec.connectTime", in.ConnectTime, time.Second, maxHold, model.Unset)
	return out
}

// restart reads graceful restart; nil if it is not set.
func (c *checker) restart(in *api.GracefulRestart) *model.BGPRestart {
	if in == nil {
		return nil
	}
	return &model.BGPRestart{Enabled: deref(in.Enabled, true),
		Time: c.duration("spec.gracefulRestart.restartTime", in.RestartTime, time.Second, maxRestart,
			model.BGPDefaultRestart),
		LongLived: c.duration("spec.gracefulRestart.longLivedTime", in.LongLivedTime, 0, maxLongLived, 0)}
}

func (c *checker) secretKey(field string, in *api.SecretKey) (out model.SecretKey) {
	if in == nil {
		return out
	}
	if in.Name == "" {
		c.bad(field+".name", "is empty; the name of a Secret in the namespace %s is allowed", model.PeersNamespace)
		return out
	}
	if out = (model.SecretKey{Name: in.Name, Key: in.Key}); out.Key == "" {
		out.Key = "password"
	}
	return out
}

// network parses a CIDR without host bits.
func (c *checker) network(field, s string) (netip.Prefix, bool) {
	p, err := apiaddr.ParsePrefix(s)
	if err != nil {
		c.bad(field, "%v", err)
		return p, false
	}
	if p != p.Masked() {
		c.bad(field, "%q has host bits set; write %s", s, p.Masked())
		return p, false
	}
	return p, true
}

func (c *checker) length(field string, have, most int) {
	if have > most {
		c.bad(field, "has %d entries; %d are allowed", have, most)
	}
}

// BGPConfiguration converts a BGPConfiguration. An invalid ASN is left out, so that no session is made.
func BGPConfiguration(in *api.BGPConfiguration) (*model.BGPConfiguration, []model.Problem) {
	c := newChecker(api.BGPConfigurationKind, &in.ObjectMeta)
	s := &in.Spec
	d := model.DefaultBGP()
	out := &model.BGPConfiguration{Name: in.Name, UID: string(in.UID), ASN: d.ASN,
		Port:   uint16(c.between("spec.listenPort", int64(s.ListenPort), 1, 65535, model.BGPDefaultPort)),
		Timers: c.timers(&s.BGPTimers).Or(d.Timers), Restart: deref(c.restart(s.GracefulRestart), d.Restart),
		Mesh: model.BGPMesh{Enabled: deref(s.Mesh.Enabled, true),
			HasReflectors: s.Mesh.RouteReflectorSelector != nil,
			Reflectors:    c.selector("spec.mesh.routeReflectorSelector", s.Mesh.RouteReflectorSelector),
			Password:      c.secretKey("spec.mesh.passwordSecret", s.Mesh.PasswordSecret)},
	}
	if in.Name != model.BGPDefault {
		c.bad("metadata.name", "%q is not used; %q is the only name that is", in.Name, model.BGPDefault)
	}
	if s.ASN != 0 {
		out.ASN = c.asn("spec.asn", s.ASN)
	}
	c.length("spec.nodeASNs", len(s.NodeASNs), maxNames)
	for i, n := range s.NodeASNs[:min(len(s.NodeASNs), maxNames)] {
		at := fmt.Sprintf("spec.nodeASNs[%d]", i)
		if n.ASN == 0 {
			c.bad(at+".asn", "is missing")
		}
		// An invalid ASN stays as none, so that its nodes do not get another one.
		out.NodeASNs = append(out.NodeASNs, model.BGPNodeASN{ASN: c.asn(at+".asn", n.ASN),
			Nodes: c.selector(at+".nodeSelector", n.NodeSelector)})
	}
	if id := s.Mesh.ClusterID; id != "" {
		a, ok := c.addr("spec.mesh.clusterID", id)
		if ok && !a.Is4() {
			c.bad("spec.mesh.clusterID", "%s is not an IPv4 address", a)
		}
		if ok && a.Is4() {
			out.Mesh.ClusterID = a
		}
	}
	out.Invalid = c.invalid()
	return out, c.problems
}

// nodeBGP reads a node's annotations.
func (c *checker) nodeBGP(in *corev1.Node) (out model.NodeBGP) {
	if text := strings.TrimSpace(in.Annotations[api.ASNAnnotation]); text != "" {
		field := "metadata.annotations[" + api.ASNAnnotation + "]"
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n == 0 {
			c.bad(field, "%q is not an ASN; 1 to 4294967294 are allowed", text)
		} else {
			out.ASN = c.asn(field, n)
		}
	}
	if text := strings.TrimSpace(in.Annotations[api.RouterIDAnnotation]); text != "" {
		field := "metadata.annotations[" + api.RouterIDAnnotation + "]"
		a, ok := c.addr(field, text)
		switch {
		case !ok:
		case !a.Is4() || a.IsUnspecified():
			c.bad(field, "%s is not a router ID; an IPv4 address is allowed", a)
		default:
			out.RouterID = a
		}
	}
	return out
}

// PeerSecret keeps the values of a Secret that may be passwords. Problems are reported for the BGPPeer that names it.
func PeerSecret(in *corev1.Secret) (*model.PeerSecret, []model.Problem) {
	out := &model.PeerSecret{Name: nameOf(&in.ObjectMeta), Values: map[string]string{}}
	for key, v := range in.Data {
		if len(v) > 0 && len(v) <= model.MaxPassword {
			out.Values[key] = string(v)
		}
	}
	return out, nil
}
