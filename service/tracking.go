package service

import (
	"errors"
	"strconv"
	"time"
)

// Tracking holds the desired settings of connection tracking. The fields are those of kube-proxy's
// KubeProxyConntrackConfiguration; zero leaves the node's own value.
type Tracking struct {
	// MaxPerCore is the limit of tracked connections per CPU, Min the minimum in total. A higher limit of the node
	// stays.
	MaxPerCore, Min int
	// Established and CloseWait are the timeouts of idle TCP connections in that state; UDP and UDPStream those of
	// flows with packets in one direction and in both.
	Established, CloseWait, UDP, UDPStream time.Duration
	// Liberal accepts packets outside of the TCP window as part of their connection.
	Liberal bool
}

// Parameters sets the values: kernel/sysctl.Set.
type Parameters interface {
	Ensure(name, value string) error
	Raise(name string, least int) error
}

// Set sets the parameters of a node with the given number of CPUs. A parameter that the node refuses does not prevent
// the others.
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
