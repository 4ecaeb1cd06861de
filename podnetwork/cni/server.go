// Package cni is the Container Network Interface, specification 1.1.0: the server in
// the agent.
package cni

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"wayleave.dev/internal/frame"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/hostport"
	"wayleave.dev/podnetwork/ipam"
	"wayleave.dev/podnetwork/veth"
)

// Links makes and removes the links of pods; veth.Host does.
type Links interface {
	Setup(podNS *os.File, l veth.Link) (net.HardwareAddr, error)
	Teardown(hostName string) error
	Exists(hostName string) bool
	Check(podNS *os.File, l veth.Link, want veth.Listed) error
	// Names are the node's ends of all links, and Addresses what is routed to one.
	Names() ([]string, error)
	Addresses(hostName string) ([]netip.Addr, error)
}

// NodeNetwork is what the server must know of its node.
type NodeNetwork struct {
	PodCIDRs []netip.Prefix
	NodeIPs  []netip.Addr
	// MTU is that of pods' links.
	MTU int
}

// Codes of errors. Those of the specification are in package types; codes from 100 on
// are ours.
const (
	codeFull   = 101 // no address is left
	codeBroken = 102 // CHECK found the pod's link broken
)

// Server answers the plugin. ADD needs nothing but the node's own facts: it never
// waits for the API server, and does for a pod that the model has not heard of yet
// what it does for any other.
type Server struct {
	Leases *ipam.LeaseStore
	Links  Links
	// Ports maps ports of the node to pods; may be nil when there is no capability.
	Ports Ports
	// Node is asked at each call; ok is false while the node has no pod network.
	Node func() (node NodeNetwork, ok bool)
	// Full is told when no address is left, and with nil when there is one again. May
	// be nil.
	Full func(err error)
	// Isolate returns when what policies say of the addresses is in the kernel; before
	// that their link is not made. May be nil.
	Isolate func(ctx context.Context, ips []netip.Addr) error
	// Reserved names the program of the node that has a port, empty for others; nil is
	// model.ReservedPort.
	Reserved func(model.Protocol, uint16) string
	Log      *slog.Logger

	// agree is held for reading by calls that change leases or links, and for writing while the two are
	// compared: what a call has half done would be taken for a difference. unsure says that they did not agree.
	agree  sync.RWMutex
	unsure bool

	mu sync.Mutex
	// busy keeps calls for one interface apart, as the runtime should.
	busy map[ipam.Key]*callLock
}

// callLock is held by the call for an interface that runs; users counts the call that holds it and those that wait.
type callLock struct {
	sync.Mutex
	users int
}

// Serve answers on a socket until ctx ends. Only root may call.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := frame.Accept(ctx, l)
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
	if err := frame.Only(c); err != nil {
		return err
	}
	var r call.Request
	// A network configuration is of some hundred bytes, with a result of earlier plugins of
	// some thousand.
	files, err := frame.ReceiveWithin(c, &r, frame.Limits{Bytes: 1 << 20, Files: 1, AnyVersion: true})
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
	s.Log.Log(context.Background(), level, "cni", "command", r.Command, "pod", podOf(r), "container", r.ContainerID,
		"interface", r.IfName,
		"took", time.Since(start).Round(10*time.Microsecond), "error", errorText(out.Error))
	return frame.Send(c, out, nil)
}

func errorText(e *types.Error) string {
	if e == nil {
		return ""
	}
	return e.Error()
}

func podOf(r call.Request) string {
	if r.Args["K8S_POD_NAME"] == "" {
		return ""
	}
	return r.Args["K8S_POD_NAMESPACE"] + "/" + r.Args["K8S_POD_NAME"]
}

// Handle answers one call; netns is the pod's namespace, nil when it is gone.
func (s *Server) Handle(r call.Request, netns *os.File) call.Response {
	var conf types.PluginConf
	// DEL needs nothing of it, and must do all that it can.
	if err := json.Unmarshal(r.Config, &conf); err != nil && r.Command != "DEL" {
		return call.Response{Error: call.Failure(types.ErrDecodingFailure, "network configuration: %v", err)}
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
		result, err = s.add(key, r, conf, netns)
	case "DEL":
		err = s.del(key)
	case "CHECK":
		err = s.check(key, r, conf, netns)
	case "STATUS":
		err = s.status()
	case "GC":
		err = s.gc(conf)
	default:
		err = call.Failure(types.ErrInvalidEnvironmentVariables, "CNI_COMMAND: %q is none", r.Command)
	}
	if err == nil && result != nil {
		return s.result(result, conf)
	}
	if err == nil {
		return call.Response{}
	}
	var e *types.Error
	if !errors.As(err, &e) {
		e = call.Failure(types.ErrInternal, "%v", err)
	}
	return call.Response{Error: e}
}

func (s *Server) result(result types.Result, conf types.PluginConf) call.Response {
	wanted := conf.CNIVersion
	if wanted == "" {
		wanted = "0.1.0" // the specification's default
	}
	converted, err := result.GetAsVersion(wanted)
	if err != nil {
		return call.Response{Error: call.Failure(types.ErrIncompatibleCNIVersion, "cniVersion: %v", err)}
	}
	raw, err := json.Marshal(converted)
	if err != nil {
		return call.Response{Error: call.Failure(types.ErrInternal, "%v", err)}
	}
	return call.Response{Result: raw}
}

func (s *Server) lock(k ipam.Key) (unlock func()) {
	t := s.join(k)
	t.Lock()
	return func() {
		t.Unlock()
		s.leave(k, t)
	}
}

// tryLock is lock where no call for the interface is under way.
func (s *Server) tryLock(k ipam.Key) (unlock func(), free bool) {
	t := s.join(k)
	if !t.TryLock() {
		s.leave(k, t)
		return nil, false
	}
	return func() {
		t.Unlock()
		s.leave(k, t)
	}, true
}

func (s *Server) join(k ipam.Key) *callLock {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy == nil {
		s.busy = map[ipam.Key]*callLock{}
	}
	t, ok := s.busy[k]
	if !ok {
		t = &callLock{}
		s.busy[k] = t
	}
	t.users++
	return t
}

func (s *Server) leave(k ipam.Key, t *callLock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(s.busy, k)
	}
}

// Each calls fn with each lease, and no call changes a lease or its link meanwhile. It skips leases that a call is
// changing now: the call leaves them right. A list from before a DEL and an ADD of one interface would bring the
// first pod's addresses to the second pod's link.
func (s *Server) Each(fn func(ipam.Lease)) {
	for _, l := range s.Leases.List() {
		unlock, free := s.tryLock(l.Key)
		if !free {
			continue
		}
		if now, ok := s.Leases.Get(l.Key); ok {
			fn(now)
		}
		unlock()
	}
}

// add gives the interface a lease and a link. A second ADD of one interface is an
// error by the specification, unless the first one's link is gone.
func (s *Server) add(k ipam.Key, r call.Request, conf types.PluginConf, netns *os.File) (types.Result, error) {
	if netns == nil {
		return nil, call.Failure(types.ErrInvalidEnvironmentVariables,
			"CNI_NETNS: the network namespace could not be opened")
	}
	if err := refuse(r.Config); err != nil {
		return nil, err
	}
	prev, err := previous(conf)
	if err != nil {
		return nil, err
	}
	local, ok := s.Node()
	if !ok {
		return nil, call.Failure(types.ErrTryAgainLater, "the node has no pod network yet (spec.podCIDRs is empty: "+
			"does the kube-controller-manager run with --allocate-node-cidrs?)")
	}
	want, rates, err := s.parseRequest(r)
	if err != nil {
		return nil, err
	}
	want.HostLink = call.HostName(k.Container, k.Interface)
	if _, known := s.Leases.Get(k); known && s.Links.Exists(want.HostLink) {
		return nil, exists(k)
	}
	if s.Leases.Find(k, want.HostLink) != k { // adopted, and alive
		return nil, exists(k)
	}
	if err := s.sure(); err != nil {
		return nil, err
	}
	s.agree.RLock()
	defer s.agree.RUnlock()
	lease, _, err := s.Leases.Acquire(k, want, local.PodCIDRs)
	s.tellFull(err)
	if err != nil {
		return nil, s.refused(err)
	}
	if err := s.isolate(lease); err != nil {
		_, _, undo := s.Leases.Release(k)
		return nil, errors.Join(err, undo)
	}
	link := s.link(lease, local)
	link.Rates = rates
	mac, err := s.Links.Setup(netns, link)
	if err == nil && s.Ports != nil && len(lease.Ports) > 0 {
		if err = s.Ports.Map(context.Background(), lease); err != nil {
			err = errors.Join(err, s.Links.Teardown(link.HostName))
		}
	}
	if err != nil {
		_, _, undo := s.Leases.Release(k)
		if errors.Is(err, veth.ErrExists) && undo == nil {
			return nil, call.Failure(types.ErrInvalidEnvironmentVariables,
				"CNI_IFNAME: the network namespace has an interface %s already", k.Interface)
		}
		return nil, errors.Join(err, undo)
	}
	return result(prev, conf.DNS, link, mac, r.Netns), nil
}

// isolateWithin bounds how long ADD waits for a pod's isolation. The runtime calls again
// when it fails.
const isolateWithin = 10 * time.Second

func (s *Server) isolate(l ipam.Lease) error {
	if s.Isolate == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), isolateWithin)
	defer cancel()
	if err := s.Isolate(ctx, l.IPs); err != nil {
		return call.Failure(types.ErrTryAgainLater, "the pod is not isolated yet as its policies say: %v", err)
	}
	return nil
}

func exists(k ipam.Key) error {
	return call.Failure(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME: container %s has an interface %s already",
		k.Container, k.Interface)
}

func (s *Server) link(l ipam.Lease, local NodeNetwork) veth.Link {
	return veth.Link{Name: l.Interface, HostName: l.HostLink, IPs: l.IPs, MTU: local.MTU, NodeIPs: local.NodeIPs,
		MAC: l.MAC, Localhost: hostport.Localhost(l.Ports)}
}

// refuse names what the configuration asks for and nobody here does: to ignore it
// would be found out by packets only. Unknown keys are let pass, as other plugins do:
// runtimes add their own.
func refuse(config json.RawMessage) error {
	var c struct {
		IPAM          json.RawMessage            `json:"ipam"`
		IPMasq        json.RawMessage            `json:"ipMasq"`
		RuntimeConfig map[string]json.RawMessage `json:"runtimeConfig"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return call.Failure(types.ErrDecodingFailure, "network configuration: %v", err)
	}
	asked := map[string]json.RawMessage{"ipam": c.IPAM, "ipMasq": c.IPMasq}
	for name, v := range c.RuntimeConfig {
		switch name {
		case "portMappings", "bandwidth", "ips", "mac": // see parseRequest
		default:
			asked["runtimeConfig."+name] = v
		}
	}
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		switch v := string(asked[name]); v {
		case "", "null", "{}", "[]", `""`: // asks for nothing
		default:
			return call.Failure(types.ErrUnsupportedField, "%s: %s is not supported; allowed is none", name, v)
		}
	}
	return nil
}

// previous is the result of the plugins before, nil when there was none.
func previous(conf types.PluginConf) (*current.Result, error) {
	if conf.RawPrevResult == nil {
		return nil, nil
	}
	if err := version.ParsePrevResult(&conf); err != nil {
		return nil, call.Failure(types.ErrInvalidNetworkConfig, "prevResult: %v", err)
	}
	prev, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return nil, call.Failure(types.ErrInvalidNetworkConfig, "prevResult: %v", err)
	}
	if slices.Contains(prev.Interfaces, nil) || slices.Contains(prev.IPs, nil) || slices.Contains(prev.Routes, nil) {
		return nil, call.Failure(types.ErrInvalidNetworkConfig, "prevResult: has a null in a list")
	}
	return prev, nil
}

// result is what ADD made, behind what the plugins before it made.
func result(prev *current.Result, dns types.DNS, link veth.Link, mac net.HardwareAddr, sandbox string) *current.Result {
	r := &current.Result{}
	if prev != nil {
		r = prev
	}
	r.CNIVersion = call.Version
	if !dns.IsEmpty() {
		r.DNS = dns
	}
	r.Interfaces = append(r.Interfaces,
		&current.Interface{Name: link.HostName, Mac: veth.HostMAC().String(), Mtu: link.MTU},
		// A plugin from before this field says the path itself, in place of any word.
		&current.Interface{Name: link.Name, Mac: mac.String(), Mtu: link.MTU, Sandbox: cmp.Or(sandbox, "pod")})
	index := len(r.Interfaces) - 1
	for _, ip := range link.IPs {
		gw := net.IP(veth.Gateway(ip.Is6()).AsSlice())
		r.IPs = append(r.IPs, &current.IPConfig{Interface: current.Int(index), Gateway: gw,
			Address: net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}})
		route := &types.Route{Dst: veth.Anywhere(ip.Is6()), GW: gw}
		if !slices.ContainsFunc(r.Routes, func(o *types.Route) bool { return o.String() == route.String() }) {
			r.Routes = append(r.Routes, route)
		}
	}
	return r
}

// del frees the lease and removes the link; what is gone already is no error.
func (s *Server) del(k ipam.Key) error {
	s.agree.RLock()
	defer s.agree.RUnlock()
	host := call.HostName(k.Container, k.Interface)
	if err := s.Links.Teardown(host); err != nil {
		return err
	}
	lease, ok, err := s.Leases.Release(s.Leases.Find(k, host))
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
	_, ok, err := s.Leases.Release(l.Key)
	if err == nil && ok && s.Ports != nil && len(l.Ports) > 0 {
		err = s.Ports.Unmap(context.Background(), l)
	}
	return err
}

// Reconcile compares the leases with the links of the node, before calls are
// answered. A lease without a link is of a pod that a reboot or a crash ended; a link
// without a lease keeps its addresses, though whose they are is not known. After an error no address is given out:
// the next ADD compares again.
func (s *Server) Reconcile() error {
	s.agree.Lock()
	defer s.agree.Unlock()
	err := s.compare()
	s.unsure = err != nil
	return err
}

// sure is nil when each address in use is known to be leased.
func (s *Server) sure() error {
	s.agree.RLock()
	unsure := s.unsure
	s.agree.RUnlock()
	if !unsure {
		return nil
	}
	s.agree.Lock()
	defer s.agree.Unlock()
	if !s.unsure {
		return nil // another call has compared meanwhile
	}
	if err := s.compare(); err != nil {
		return call.Failure(types.ErrTryAgainLater, "which addresses are in use is not known: %v", err)
	}
	s.unsure = false
	return nil
}

func (s *Server) compare() error {
	names, err := s.Links.Names()
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, n := range names {
		there[n] = true
	}
	leased, living := map[string]bool{}, map[ipam.Key][]netip.Addr{}
	var errs []error
	for _, l := range s.Leases.List() {
		if there[l.HostLink] {
			leased[l.HostLink] = true
			ips, err := s.Links.Addresses(l.HostLink)
			if err == nil {
				living[l.Key] = ips
			}
			errs = append(errs, err)
			continue
		}
		s.Log.Info("lease of a pod that is gone", "pod", l.Pod, "ips", l.IPs)
		errs = append(errs, s.end(l))
	}
	s.Leases.Correct(living)
	for _, n := range names {
		if leased[n] {
			continue
		}
		ips, err := s.Links.Addresses(n)
		if err == nil {
			s.Log.Warn("link without a lease", "link", n, "ips", ips)
			err = s.Leases.Adopt(n, ips)
		}
		if errors.As(err, &ipam.ConflictError{}) { // nobody else gets it either way
			s.Log.Warn("leases and links", "err", err)
			err = nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// check compares the pod with its lease and with what ADD returned.
func (s *Server) check(k ipam.Key, r call.Request, conf types.PluginConf, netns *os.File) error {
	lease, ok := s.Leases.Get(k)
	if !ok {
		return call.Failure(types.ErrUnknownContainer, "container %s has no lease for %s", k.Container, k.Interface)
	}
	if netns == nil {
		return call.Failure(types.ErrInvalidEnvironmentVariables,
			"CNI_NETNS: the network namespace could not be opened")
	}
	prev, err := previous(conf)
	if err != nil {
		return err
	}
	if prev == nil {
		return call.Failure(types.ErrInvalidNetworkConfig, "prevResult: is missing, CHECK needs it")
	}
	want, err := listed(prev, lease, r.Netns)
	if err != nil {
		return err
	}
	local, _ := s.Node()
	if err := s.Links.Check(netns, s.link(lease, local), want); err != nil {
		return call.Failure(codeBroken, "%v", err)
	}
	return nil
}

// listed is what of ours the last result of the chain has: plugins behind us may
// have added to it and taken from it.
func listed(prev *current.Result, lease ipam.Lease, sandbox string) (veth.Listed, error) {
	var want veth.Listed
	index := slices.IndexFunc(prev.Interfaces, func(i *current.Interface) bool {
		return i.Name == lease.Interface &&
			i.Sandbox == sandbox
	})
	if index < 0 {
		return want, call.Failure(types.ErrInvalidNetworkConfig, "prevResult: interfaces: %s in %s is missing",
			lease.Interface, sandbox)
	}
	for _, ip := range prev.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if ok && slices.Contains(lease.IPs, a.Unmap()) && (ip.Interface == nil || *ip.Interface == index) {
			want.IPs = append(want.IPs, a.Unmap())
		}
	}
	if len(want.IPs) == 0 {
		return want, call.Failure(types.ErrInvalidNetworkConfig,
			"prevResult: ips: none is leased to this container, which has %v", lease.IPs)
	}
	for _, route := range prev.Routes {
		if ones, bits := route.Dst.Mask.Size(); ones == 0 {
			want.Default4 = want.Default4 || bits == 32
			want.Default6 = want.Default6 || bits == 128
		}
	}
	return want, nil
}

// status says whether an ADD could be served now.
func (s *Server) status() error {
	local, ok := s.Node()
	if !ok {
		return call.Failure(types.ErrPluginNotAvailable, "the node has no pod network yet (spec.podCIDRs is empty: "+
			"does the kube-controller-manager run with --allocate-node-cidrs?)")
	}
	if err := s.Leases.Room(local.PodCIDRs); err != nil {
		return call.Failure(types.ErrPluginNotAvailable, "%v", err)
	}
	return nil
}

// gc frees all leases but those of the attachments that the runtime still has. A list
// that cannot be understood whole frees nothing: pods would lose their network.
func (s *Server) gc(conf types.PluginConf) error {
	const field = "cni.dev/valid-attachments"
	if conf.ValidAttachments == nil {
		return call.Failure(types.ErrInvalidNetworkConfig, "%s: is missing, GC needs it", field)
	}
	valid := map[string]bool{}
	for i, a := range conf.ValidAttachments {
		if a.ContainerID == "" || a.IfName == "" {
			return call.Failure(types.ErrInvalidNetworkConfig,
				"%s[%d]: containerID is %q and ifname %q; both are needed", field, i, a.ContainerID, a.IfName)
		}
		valid[call.HostName(a.ContainerID, a.IfName)] = true
	}
	var errs []error
	for _, l := range s.Leases.List() {
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
