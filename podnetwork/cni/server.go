package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"wayleave.dev/internal/frame"
	"wayleave.dev/podnetwork/hostport"
	"wayleave.dev/podnetwork/ipam"
	"wayleave.dev/podnetwork/veth"
)

// Links makes and removes the links of pods; veth.Host does.
type Links interface {
	Setup(podNS *os.File, l veth.Link) (net.HardwareAddr, error)
	Teardown(hostName string) error
	Check(podNS *os.File, l veth.Link) error
	// Names are the node's ends of all links, and Addresses what is routed to one.
	Names() ([]string, error)
	Addresses(hostName string) ([]netip.Addr, error)
}

// Local is what the server must know of its node.
type Local struct {
	PodCIDRs []netip.Prefix
	NodeIPs  []netip.Addr
	// MTU is that of pods' links.
	MTU int
}

// Server answers the plugin. ADD needs nothing but the node's own facts: it never
// waits for the API server, and does for a pod that the model has not heard of yet
// what it does for any other.
type Server struct {
	Book  *ipam.Book
	Links Links
	// Ports maps ports of the node to pods; may be nil when there is no capability.
	Ports Ports
	// Local is asked at each call; ok is false while the node has no pod network.
	Local func() (l Local, ok bool)
	// Full is told when no address is left, and with nil when there is one again. May
	// be nil.
	Full func(err error)
	Log  *slog.Logger

	mu sync.Mutex
	// busy keeps calls for one interface apart, as the runtime should.
	busy map[ipam.Key]*sync.Mutex
}

// Serve answers on a socket until ctx ends. Only root may call.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("cni socket: %w", err)
		}
		wg.Go(func() {
			defer c.Close()
			if err := s.answer(c); err != nil && !errors.Is(err, io.EOF) {
				s.Log.Warn("bad call on the CNI socket", "err", err)
			}
		})
	}
}

func (s *Server) answer(c *net.UnixConn) error {
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	uid, err := frame.PeerUID(c)
	if err != nil {
		return err
	}
	if uid != 0 {
		return fmt.Errorf("user %d may not call", uid)
	}
	var r Request
	files, err := frame.Receive(c, &r)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	var netns *os.File
	if len(files) > 0 {
		netns = files[0]
	}
	start := time.Now()
	out := s.Handle(r, netns)
	level := slog.LevelInfo
	if out.Error != nil {
		level = slog.LevelError
	}
	s.Log.Log(context.Background(), level, "cni", "command", r.Command, "pod", r.pod(), "container", r.ContainerID, "interface", r.IfName,
		"took", time.Since(start).Round(10*time.Microsecond), "error", errorText(out.Error))
	return frame.Send(c, out, nil)
}

func errorText(e *types.Error) string {
	if e == nil {
		return ""
	}
	return e.Error()
}

func (r Request) pod() string {
	if r.Args["K8S_POD_NAME"] == "" {
		return ""
	}
	return r.Args["K8S_POD_NAMESPACE"] + "/" + r.Args["K8S_POD_NAME"]
}

// Handle answers one call; netns is the pod's namespace, nil when it is gone.
func (s *Server) Handle(r Request, netns *os.File) Response {
	var conf types.PluginConf
	if err := json.Unmarshal(r.Config, &conf); err != nil {
		return Response{Error: Failure(types.ErrDecodingFailure, "network configuration: %v", err)}
	}
	key := ipam.Key{Container: r.ContainerID, Interface: r.IfName}
	switch r.Command {
	case "ADD", "DEL", "CHECK":
		defer s.lock(key)()
	}
	var result types.Result
	var err error
	switch r.Command {
	case "ADD":
		result, err = s.add(key, r, netns)
	case "DEL":
		err = s.del(key)
	case "CHECK":
		err = s.check(key, conf, netns)
	case "STATUS":
		err = s.status()
	case "GC":
		err = s.gc(conf)
	default:
		err = Failure(types.ErrInvalidEnvironmentVariables, "CNI_COMMAND: %q is none", r.Command)
	}
	if err == nil && result != nil {
		return s.result(result, conf)
	}
	if err == nil {
		return Response{}
	}
	var e *types.Error
	if !errors.As(err, &e) {
		e = Failure(types.ErrInternal, "%v", err)
	}
	return Response{Error: e}
}

func (s *Server) result(result types.Result, conf types.PluginConf) Response {
	wanted := conf.CNIVersion
	if wanted == "" {
		wanted = "0.1.0" // the specification's default
	}
	converted, err := result.GetAsVersion(wanted)
	if err != nil {
		return Response{Error: Failure(types.ErrIncompatibleCNIVersion, "cniVersion: %v", err)}
	}
	raw, err := json.Marshal(converted)
	if err != nil {
		return Response{Error: Failure(types.ErrInternal, "%v", err)}
	}
	return Response{Result: raw}
}

func (s *Server) lock(k ipam.Key) func() {
	s.mu.Lock()
	if s.busy == nil {
		s.busy = map[ipam.Key]*sync.Mutex{}
	}
	m, ok := s.busy[k]
	if !ok {
		m = &sync.Mutex{}
		s.busy[k] = m
	}
	s.mu.Unlock()
	m.Lock()
	return func() {
		m.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if m.TryLock() { // nobody waits for it
			delete(s.busy, k)
		}
	}
}

// codeFull is ours: the specification leaves codes from 100 on to plugins.
const codeFull = 101

// add gives the interface a lease and a link. A second ADD of one interface is an
// error by the specification, unless the first one's link is gone.
func (s *Server) add(k ipam.Key, r Request, netns *os.File) (types.Result, error) {
	if netns == nil {
		return nil, Failure(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: the network namespace could not be opened")
	}
	local, ok := s.Local()
	if !ok {
		return nil, Failure(types.ErrTryAgainLater, "the node has no pod network yet (spec.podCIDRs is empty)")
	}
	wish, rates, err := parseWish(r)
	if err != nil {
		return nil, err
	}
	wish.HostLink = veth.HostName(k.Container, k.Interface)
	if s.Book.Find(k, wish.HostLink) != k { // adopted, and alive
		return nil, exists(k)
	}
	lease, known, err := s.Book.Acquire(k, wish, local.PodCIDRs)
	s.tellFull(err)
	if err != nil {
		return nil, s.refused(err)
	}
	link := s.link(lease, local)
	link.Rates = rates
	if known && s.Links.Check(netns, link) == nil {
		return nil, exists(k)
	}
	mac, err := s.Links.Setup(netns, link)
	if err == nil && s.Ports != nil && len(lease.Ports) > 0 {
		if err = s.Ports.Map(context.Background(), lease); err != nil {
			err = errors.Join(err, s.Links.Teardown(link.HostName))
		}
	}
	if err != nil {
		_, _, undo := s.Book.Release(k)
		return nil, errors.Join(err, undo)
	}
	return result(lease, link, mac), nil
}

func exists(k ipam.Key) error {
	return Failure(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME: container %s has an interface %s already", k.Container, k.Interface)
}

func (s *Server) link(l ipam.Lease, local Local) veth.Link {
	return veth.Link{Name: l.Interface, HostName: l.HostLink, IPs: l.IPs, MTU: local.MTU, NodeIPs: local.NodeIPs, MAC: l.MAC, Localhost: hostport.Localhost(l.Ports)}
}

func result(l ipam.Lease, link veth.Link, mac net.HardwareAddr) *current.Result {
	r := &current.Result{CNIVersion: Version, Interfaces: []*current.Interface{
		{Name: link.HostName, Mtu: link.MTU},
		{Name: link.Name, Mac: mac.String(), Mtu: link.MTU, Sandbox: "pod"},
	}}
	for _, ip := range l.IPs {
		r.IPs = append(r.IPs, &current.IPConfig{Interface: current.Int(1), Address: net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}})
	}
	return r
}

// del frees the lease and removes the link; what is gone already is no error.
func (s *Server) del(k ipam.Key) error {
	host := veth.HostName(k.Container, k.Interface)
	if err := s.Links.Teardown(host); err != nil {
		return err
	}
	lease, ok, err := s.Book.Release(s.Book.Find(k, host))
	if err == nil && ok && s.Ports != nil && len(lease.Ports) > 0 {
		err = s.Ports.Unmap(context.Background(), lease)
	}
	return err
}

// end ends a lease whose container nobody knows any more.
func (s *Server) end(l ipam.Lease) error {
	if err := s.Links.Teardown(l.HostLink); err != nil {
		return err
	}
	_, ok, err := s.Book.Release(l.Key)
	if err == nil && ok && s.Ports != nil && len(l.Ports) > 0 {
		err = s.Ports.Unmap(context.Background(), l)
	}
	return err
}

// Reconcile compares the leases with the links of the node, before calls are
// answered. A lease without a link is of a pod that a reboot or a crash ended; a link
// without a lease keeps its addresses, though whose they are is not known.
func (s *Server) Reconcile() error {
	names, err := s.Links.Names()
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, n := range names {
		there[n] = true
	}
	leased := map[string]bool{}
	var errs []error
	for _, l := range s.Book.List() {
		if there[l.HostLink] {
			leased[l.HostLink] = true
			continue
		}
		s.Log.Info("lease of a pod that is gone", "pod", l.Pod, "ips", l.IPs)
		errs = append(errs, s.end(l))
	}
	for _, n := range names {
		if leased[n] {
			continue
		}
		ips, err := s.Links.Addresses(n)
		if err == nil {
			s.Log.Warn("link without a lease", "link", n, "ips", ips)
			err = s.Book.Adopt(n, ips)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// check compares the pod with its lease and with what ADD returned.
func (s *Server) check(k ipam.Key, conf types.PluginConf, netns *os.File) error {
	lease, ok := s.Book.Get(k)
	if !ok {
		return Failure(types.ErrUnknownContainer, "container %s has no lease for %s", k.Container, k.Interface)
	}
	if netns == nil {
		return Failure(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: the network namespace could not be opened")
	}
	if conf.RawPrevResult == nil {
		return Failure(types.ErrInvalidNetworkConfig, "prevResult: is missing, CHECK needs it")
	}
	if err := version.ParsePrevResult(&conf); err != nil {
		return Failure(types.ErrInvalidNetworkConfig, "prevResult: %v", err)
	}
	prev, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return Failure(types.ErrInvalidNetworkConfig, "prevResult: %v", err)
	}
	for _, ip := range prev.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok || !containsAddr(lease.IPs, a.Unmap()) {
			return Failure(types.ErrInvalidNetworkConfig, "prevResult: ips: %s is not leased to this container", ip.Address.IP)
		}
	}
	local, _ := s.Local()
	if err := s.Links.Check(netns, s.link(lease, local)); err != nil {
		return Failure(codeFull+1, "%v", err)
	}
	return nil
}

func containsAddr(list []netip.Addr, a netip.Addr) bool {
	for _, b := range list {
		if a == b {
			return true
		}
	}
	return false
}

// codeNotReady is the specification's for a STATUS of a plugin that cannot ADD.
const codeNotReady = 50

func (s *Server) status() error {
	if _, ok := s.Local(); !ok {
		return Failure(codeNotReady, "the node has no pod network yet (spec.podCIDRs is empty)")
	}
	return nil
}

// gc frees all leases but those of the attachments that the runtime still has.
func (s *Server) gc(conf types.PluginConf) error {
	if conf.ValidAttachments == nil {
		return Failure(types.ErrInvalidNetworkConfig, "cni.dev/valid-attachments: is missing, GC needs it")
	}
	valid := map[string]bool{}
	for _, a := range conf.ValidAttachments {
		valid[veth.HostName(a.ContainerID, a.IfName)] = true
	}
	var errs []error
	for _, l := range s.Book.List() {
		if !valid[l.HostLink] {
			unlock := s.lock(l.Key)
			errs = append(errs, s.end(l))
			unlock()
		}
	}
	return errors.Join(errs...)
}

// Bury frees the leases of what the plugin deleted while no agent was there.
func (s *Server) Bury(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("tombstones: %w", err)
	}
	var errs []error
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		raw, err := os.ReadFile(file)
		var k ipam.Key
		if err == nil {
			err = json.Unmarshal(raw, &k)
		}
		if err != nil {
			// A torn one: the lease stays until GC, which is safe.
			errs = append(errs, fmt.Errorf("tombstone %s: %w", file, err), os.Remove(file))
			continue
		}
		unlock := s.lock(k)
		err = s.del(k)
		unlock()
		if err == nil {
			err = os.Remove(file)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
