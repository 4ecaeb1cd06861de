package cni

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"

	"wayleave.dev/model"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/hostport"
	"wayleave.dev/podnetwork/ipam"
	"wayleave.dev/podnetwork/veth"
)

// Ports maps ports of the node to pods. Both calls take the lease as it is by now, or was.
type Ports interface {
	Map(ctx context.Context, l ipam.Lease) error
	Unmap(ctx context.Context, l ipam.Lease) error
}

// runtimeConf is what the runtime passes for the capabilities of our network
// configuration (CONVENTIONS.md of the specification), and the older conventions for
// the same: args.cni, and CNI_ARGS.
type runtimeConf struct {
	RuntimeConfig struct {
		PortMappings []hostport.Request `json:"portMappings"`
		Bandwidth    struct {
			IngressRate  uint64 `json:"ingressRate"`
			IngressBurst uint64 `json:"ingressBurst"`
			EgressRate   uint64 `json:"egressRate"`
			EgressBurst  uint64 `json:"egressBurst"`
		} `json:"bandwidth"`
		IPs []string `json:"ips"`
		MAC string   `json:"mac"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []string `json:"ips"`
			MAC string   `json:"mac"`
		} `json:"cni"`
	} `json:"args"`
}

// parseRequest reads what a pod asks for beside an interface. The capabilities come
// first, then args.cni, then CNI_ARGS.
func (s *Server) parseRequest(r call.Request) (ipam.LeaseRequest, veth.Rates, error) {
	w := ipam.LeaseRequest{Pod: podOf(r)}
	var c runtimeConf
	if err := json.Unmarshal(r.Config, &c); err != nil {
		return w, veth.Rates{}, call.Failure(types.ErrDecodingFailure, "runtimeConfig: %v", err)
	}
	bad := func(err error) (ipam.LeaseRequest, veth.Rates, error) {
		return w, veth.Rates{}, call.Failure(types.ErrInvalidNetworkConfig, "%v", err)
	}
	var err error
	reserved := s.Reserved
	if reserved == nil {
		reserved = model.ReservedPort
	}
	if w.Ports, err = hostport.Parse(c.RuntimeConfig.PortMappings, reserved); err != nil {
		return bad(err)
	}
	b := c.RuntimeConfig.Bandwidth
	rates := veth.Rates{Ingress: b.IngressRate, IngressBurst: b.IngressBurst, Egress: b.EgressRate,
		EgressBurst: b.EgressBurst}
	if err := rates.Check(); err != nil {
		return w, rates, call.Failure(types.ErrInvalidNetworkConfig, "runtimeConfig.bandwidth.%v", err)
	}
	for _, from := range []struct {
		field string
		ips   []string
		mac   string
	}{
		{"runtimeConfig", c.RuntimeConfig.IPs, c.RuntimeConfig.MAC},
		{"args.cni", c.Args.CNI.IPs, c.Args.CNI.MAC},
		{"CNI_ARGS", split(r.Args["IP"]), r.Args["MAC"]},
	} {
		if len(w.IPs) == 0 {
			if w.IPs, err = addresses(from.field, from.ips); err != nil {
				return w, rates, err
			}
		}
		if w.MAC == nil && from.mac != "" {
			if w.MAC, err = hardware(from.field, from.mac); err != nil {
				return w, rates, err
			}
		}
	}
	return w, rates, nil
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// addresses reads "10.0.0.5" and "10.0.0.5/24", at most one of a family.
func addresses(field string, list []string) (out []netip.Addr, err error) {
	seen := map[bool]bool{}
	for _, s := range list {
		a, err := netip.ParseAddr(s)
		if p, perr := netip.ParsePrefix(s); err != nil && perr == nil {
			a, err = p.Addr(), nil
		}
		if err != nil || a.Zone() != "" {
			return nil, call.Failure(types.ErrInvalidNetworkConfig, "%s.ips: %q is not an IP address", field, s)
		}
		if a = a.Unmap(); seen[a.Is6()] {
			return nil, call.Failure(types.ErrInvalidNetworkConfig,
				"%s.ips: %s is a second address of its family", field, a)
		}
		seen[a.Is6()] = true
		out = append(out, a)
	}
	return out, nil
}

func hardware(field, s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, call.Failure(types.ErrInvalidNetworkConfig,
			"%s.mac: %q is not the address of one Ethernet interface", field, s)
	}
	return mac, nil
}

// refused turns an error of the lease store into one of CNI's.
func (s *Server) refused(err error) error {
	var full ipam.ExhaustedError
	var taken ipam.ConflictError
	switch {
	case errors.As(err, &full):
		return types.NewError(codeFull, full.Error(), "pods that ended free their addresses when the runtime calls DEL")
	case errors.As(err, &taken):
		return types.NewError(codeTaken, taken.Error(), "what the pod asks for is in use on this node")
	}
	return err
}

// tellFull passes on whether addresses have run out.
func (s *Server) tellFull(err error) {
	var full ipam.ExhaustedError
	switch {
	case s.Full == nil:
	case errors.As(err, &full):
		s.Full(full)
	case err == nil:
		s.Full(nil)
	}
}

// codeTaken is ours, like codeFull.
const codeTaken = 103
