package service

import (
	"errors"
	"strconv"
	"time"
)

// Tracking is what connection tracking of the node is asked for. The fields are those of kube-proxy's
// KubeProxyContrackConfiguration; a zero leaves the node's own value.
type Tracking struct {
	// MaxPerCore is how many connections the node remembers per CPU, Min how many at least. A higher limit of the
	// node's own stays.
	MaxPerCore, Min int
	// Established and CloseWait are how long an idle TCP connection in that state is remembered, UDP and UDPStream how
	// long a flow with one packet and with packets both ways.
	Established, CloseWait, UDP, UDPStream time.Duration
	// Liberal also takes packets outside of a TCP window for part of their connection.
	Liberal bool
}

// Parameters is where the values go: kernel/sysctl.Set.
type Parameters interface {
	Ensure(name, value string) error
	Raise(name string, least int) error
}

// Set sets the parameters of a node with so many CPUs. One that the node refuses keeps no other from being set.
func (t Tracking) Set(to Parameters, cpus int) error {
	const folder = "netfilter/nf_conntrack_"
	var errs []error
	if t.MaxPerCore > 0 {
		errs = append(errs, to.Raise(folder+"max", max(t.MaxPerCore*cpus, t.Min)))
	}
	for name, d := range map[string]time.Duration{
		"tcp_timeout_established": t.Established, "tcp_timeout_close_wait": t.CloseWait, "udp_timeout": t.UDP,
		"udp_timeout_stream": t.UDPStream,
	} {
		if d > 0 {
			errs = append(errs, to.Ensure(folder+name, strconv.Itoa(int(d/time.Second))))
		}
	}
	if t.Liberal {
		errs = append(errs, to.Ensure(folder+"tcp_be_liberal", "1"))
	}
	return errors.Join(errs...)
}
