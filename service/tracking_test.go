package service

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"
)

type parameters map[string]string

func (p parameters) Ensure(name, value string) error {
	p[name] = value
	if name == "netfilter/nf_conntrack_udp_timeout" {
		return errors.New("refused")
	}
	return nil
}

func (p parameters) Raise(name string, least int) error {
	return p.Ensure(name, fmt.Sprint("at least ", least))
}

func TestTrackingIsSetAsKubeProxySetsIt(t *testing.T) {
	const folder = "netfilter/nf_conntrack_"
	for _, tc := range []struct {
		in   Tracking
		cpus int
		want parameters
		fail bool
	}{
		{Tracking{}, 4, parameters{}, false},
		{Tracking{MaxPerCore: 32768, Min: 131072}, 2, parameters{folder + "max": "at least 131072"}, false},
		{Tracking{MaxPerCore: 32768, Min: 131072}, 8, parameters{folder + "max": "at least 262144"}, false},
		{Tracking{Min: 131072}, 8, parameters{}, false},
		{Tracking{Established: 24 * time.Hour, CloseWait: time.Hour, Liberal: true}, 1,
			parameters{folder + "tcp_timeout_established": "86400", folder + "tcp_timeout_close_wait": "3600", folder +
				"tcp_be_liberal": "1"}, false},
		{Tracking{UDP: 30 * time.Second, UDPStream: time.Minute}, 1, parameters{folder + "udp_timeout": "30", folder +
			"udp_timeout_stream": "60"}, true},
	} {
		got := parameters{}
		if err := tc.in.Set(got, tc.cpus); !maps.Equal(got, tc.want) || (err != nil) != tc.fail {
			t.Errorf("%+v on %d CPUs: %v, %v; want %v", tc.in, tc.cpus, got, err, tc.want)
		}
	}
}
