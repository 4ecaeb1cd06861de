package connectivity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/check"
	"wayleave.dev/source/kubernetes/sandbox"
)

// fake is a cluster whose network can be spoilt.
type fake struct {
	mu       sync.Mutex
	pods     []sandbox.PodState
	isolated map[string]string
	removed  int
	// breaks returns the error of a probe of a pod, or "".
	breaks func(from string, p Probe) string
	// fails returns the error of a call, or nil.
	fails func(call string) error
	// noClass, noAddress, noDomain and noPolicies are what the cluster lacks.
	noClass, noAddress, noDomain, noPolicies bool
	unready                                  string
}

func (f *fake) call(name string) error {
	if f.fails != nil {
		return f.fails(name)
	}
	return nil
}

func (f *fake) Name() string { return "wayleave-test-x" }

func (f *fake) Start(_ context.Context, pods []sandbox.Pod, _ int, _ ...string) error {
	for i, p := range pods {
		f.pods = append(f.pods, sandbox.PodState{Pod: p, Ready: p.Name != f.unready, Problem: "ErrImagePull",
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}),
				netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1))}})
	}
	return f.call("start")
}

func (f *fake) Pods(context.Context) ([]sandbox.PodState, error) { return f.pods, f.call("pods") }

func (f *fake) CreateService(_ context.Context, v sandbox.Service) (sandbox.Exposed, error) {
	e := sandbox.Exposed{Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.20"), netip.MustParseAddr("fd01::20")}}
	if v.Type == "NodePort" {
		e.NodeTCP, e.NodeUDP = 30001, 30002
	}
	return e, f.call("service " + v.Name)
}

func (f *fake) Exposed(context.Context, string, string) (sandbox.Exposed, error) {
	if f.noAddress {
		return sandbox.Exposed{}, nil
	}
	return sandbox.Exposed{External: []netip.Addr{netip.MustParseAddr("192.0.2.10")}}, nil
}

func (f *fake) Isolate(_ context.Context, name, from string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.isolated == nil {
		f.isolated = map[string]string{}
	}
	f.isolated[name] = from
	return f.call("isolate")
}

func (f *fake) HasClass(context.Context, string) (bool, error) { return !f.noClass, f.call("class") }

func (f *fake) CreateIngress(context.Context, string, string, string, int) error {
	return f.call("ingress")
}

func (f *fake) IngressAddrs(context.Context, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.11")}, nil
}

func (f *fake) Exec(ctx context.Context, pod string, _ int, command ...string) ([]byte, error) {
	if err := errors.Join(ctx.Err(), f.call("exec")); err != nil {
		return nil, err
	}
	var probes []Probe
	if err := json.Unmarshal([]byte(command[2]), &probes); err != nil {
		return nil, err
	}
	var out []Result
	for _, p := range probes {
		r := Result{ID: p.ID, Error: f.result(pod, p)}
		if p.Kind == Domain && !f.noDomain {
			r.Found = "cluster.test"
		}
		out = append(out, r)
	}
	return json.Marshal(out)
}

func (f *fake) result(pod string, p Probe) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.breaks != nil {
		if e := f.breaks(pod, p); e != "" {
			return e
		}
	}
	host, _, _ := strings.Cut(p.To, ":")
	denied := false
	for _, s := range f.pods {
		from, ok := f.isolated[s.App]
		if ok && !f.noPolicies && (s.Addrs[0].String() == host ||
			strings.HasPrefix(p.To, "["+s.Addrs[1].String()+"]")) {
			denied = from == "" || !strings.HasPrefix(pod, from)
		}
	}
	if denied != p.Denied {
		return fmt.Sprintf("denied: %v", denied)
	}
	return ""
}

func (f *fake) Remove(ctx context.Context) error {
	f.removed++
	return errors.Join(ctx.Err(), f.call("remove"))
}

func nodes() []sandbox.Node {
	return []sandbox.Node{{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.11")}},
		{Name: "n2", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.12"), netip.MustParseAddr("fd02::12")}}}
}

func TestAGoodNetworkIsGood(t *testing.T) {
	t.Parallel()
	f := &fake{}
	r, err := Run(t.Context(), f, nodes(), Options{Class: "wayleave"})
	if err != nil || r.Result != check.Good || f.removed != 1 {
		t.Fatalf("%v, removed %d times: %s", err, f.removed, r.Text())
	}
	for _, want := range []string{"2 nodes: pods reach pods of the same node by TCP over IPv4",
		"other nodes by UDP over IPv6",
		"packets of the path's MTU pass between nodes over IPv4", "node ports by TCP over IPv6",
		"a load balancer's address",
		"a Service of type ExternalName", "by its Ingress over IPv4", "a policy denies what it does not name over IPv6",
		"the namespace of the test is removed"} {
		if !strings.Contains(r.Text(), want) {
			t.Errorf("no %q in\n%s", want, r.Text())
		}
	}
	var titles []string
	for _, s := range r.Sections {
		titles = append(titles, s.Title)
	}
	if want := []string{"pods", "path", "services", "dns", "ingress", "policy", "clean-up"}; !slices.Equal(
		titles, want) {
		t.Errorf("sections %v", titles)
	}
}

// Each fault is a line of its own with what to do, and costs no line of another thing.
func TestEachFaultIsFound(t *testing.T) {
	to := func(kind Kind, part string) func(string, Probe) string {
		return func(from string, p Probe) string {
			if p.Kind == kind && !p.Denied && strings.Contains(p.To, part) && strings.HasSuffix(from, "-0") {
				return "i/o timeout"
			}
			return ""
		}
	}
	for _, tc := range []struct {
		id    string
		level check.Level
		spoil func(*fake)
		fix   string
	}{
		{"pods-same-node-http-4", check.Failed, func(f *fake) { f.breaks = to(HTTP, "10.0.0.2:") },
			"check --pre --node"},
		{"pods-other-node-udp-6", check.Failed, func(f *fake) { f.breaks = to(UDP, "[fd00::4]") }, "UDP 4789"},
		{"mtu-4", check.Failed, func(f *fake) { f.breaks = to(Path, "10.") }, "fragmentation needed"},
		{"large-6", check.Failed, func(f *fake) { f.breaks = to(Large, "fd00") }, "MTU"},
		{"clusterip-tcp-4", check.Failed, func(f *fake) { f.breaks = to(HTTP, "10.96.0.20") }, "explain policy"},
		{"clusterip-udp-6", check.Failed, func(f *fake) { f.breaks = to(UDP, "fd01::20") }, "status --node n1"},
		{"nodeport-tcp-4", check.Failed, func(f *fake) { f.breaks = to(HTTP, ":30001") }, "status --node n1"},
		{"nodeport-udp-6", check.Failed, func(f *fake) { f.breaks = to(UDP, "fd02::12]:30002") }, "status --node n1"},
		{"loadbalancer-4", check.Failed, func(f *fake) { f.breaks = to(HTTP, "192.0.2.10") }, "status --node n1"},
		{"dns-short", check.Failed, func(f *fake) { f.breaks = to(DNS, "server") }, "kube-dns"},
		{"dns-kubernetes", check.Failed, func(f *fake) { f.breaks = to(DNS, "kubernetes.default") }, "wayleave check"},
		{"dns-headless", check.Failed, func(f *fake) { f.breaks = to(DNS, "servers") }, "wayleave check"},
		{"dns-externalname", check.Failed, func(f *fake) { f.breaks = to(DNS, "alias") }, "wayleave check"},
		{"dns-search", check.Failed, func(f *fake) {
			f.noDomain = true
			f.breaks = to(DNS, "server.wayleave-test-x")
		}, "wayleave check"},
		{"ingress-4", check.Failed, func(f *fake) { f.breaks = to(HTTP, "192.0.2.11") }, "ingress check"},
		{"ingress", check.Warning, func(f *fake) { f.noClass = true }, "ingress.enabled"},
		{"loadbalancer", check.Warning, func(f *fake) { f.noAddress = true }, "AddressPool"},
		{"policy-denies-4", check.Failed, func(f *fake) { f.noPolicies = true }, "networkpolicy.enabled"},
		{"policy-before-4", check.Failed, func(f *fake) { f.breaks = to(HTTP, "10.0.0.5:") }, "status --node n1"},
		{"policy-allows-6", check.Failed, func(f *fake) {
			f.breaks = func(_ string, p Probe) string {
				if f.isolated["guarded"] != "" && !p.Denied && strings.Contains(p.To, "[fd00::5]") {
					return "timeout"
				}
				return ""
			}
		}, "networkpolicy.enabled"},
		{"start", check.Failed, func(f *fake) { f.unready = "server-1" }, "--image"},
		{"clean-up", check.Failed, func(f *fake) {
			f.fails = func(call string) error {
				if call == "remove" {
					return errors.New("a finalizer holds it")
				}
				return nil
			}
		}, "kubectl delete namespace wayleave-test-x"},
	} {
		t.Run(tc.id, func(t *testing.T) {
			t.Parallel()
			f := &fake{}
			tc.spoil(f)
			r, err := Run(t.Context(), f, nodes(), Options{Class: "wayleave", ReadyWithin: 10 * time.Millisecond,
				AddressWithin: 10 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, s := range r.Sections {
				for _, l := range s.Lines {
					found = found || l.ID == tc.id && l.Level == tc.level &&
						strings.Contains(l.Fix, tc.fix) && l.Text != ""
				}
			}
			if !found || (r.Status() == nil) != (tc.level == check.Warning) || f.removed != 1 {
				t.Errorf("removed %d times; no %s %s with %q in\n%s", f.removed, tc.id, tc.level, tc.fix, r.Text())
			}
		})
	}
}

// A pod that cannot be reached before the policy proves nothing when it cannot be reached after it.
func TestADenialNeedsAConnectionBefore(t *testing.T) {
	t.Parallel()
	f := &fake{breaks: func(_ string, p Probe) string {
		if strings.Contains(p.To, "10.0.0.6:") && !p.Denied {
			return "no route"
		}
		return ""
	}}
	r, err := Run(t.Context(), f, nodes(), Options{Skip: []string{PartIngress, PartLoadBalancer}})
	if err != nil || strings.Contains(r.Text(), "a policy denies") || len(f.isolated) > 0 ||
		!strings.Contains(r.Text(), "no policy isolates") {
		t.Errorf("%v, policies %v:\n%s", err, f.isolated, r.Text())
	}
}

func TestPartsAreSkipped(t *testing.T) {
	t.Parallel()
	f := &fake{}
	r, err := Run(t.Context(), f, nodes(), Options{Skip: Parts(), Nodes: 1})
	if err != nil || r.Result != check.Warning || !strings.Contains(r.Text(), "1 of 2 nodes are tested") {
		t.Errorf("%v: %s", err, r.Text())
	}
	for _, s := range r.Sections {
		if slices.Contains([]string{"path", "dns", "ingress", "policy"}, s.Title) {
			t.Errorf("%s was skipped, and is in\n%s", s.Title, r.Text())
		}
	}
}

// Whatever ends a run, the namespace is removed, with a context that lives; and who cannot remove it is told.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"start", "pods", "service server", "service node", "service balanced",
		"class", "ingress",
		"isolate", "exec"} {
		ctx, cancel := context.WithCancel(t.Context())
		f := &fake{}
		f.fails = func(name string) error {
			if name == call {
				cancel() // as ^C does
				return errors.New("failed: " + call)
			}
			return nil
		}
		_, err := Run(ctx, f, nodes(), Options{Class: "wayleave"})
		if f.removed != 1 || err == nil || strings.Contains(err.Error(), "to remove it") {
			t.Errorf("%s: removed %d times, %v", call, f.removed, err)
		}
		cancel()
	}
	f := &fake{fails: func(string) error { return errors.New("away") }}
	if _, err := Run(t.Context(), f, nodes(), Options{}); err == nil ||
		!strings.Contains(err.Error(), "to remove it: kubectl delete namespace wayleave-test-x") {
		t.Errorf("%v", err)
	}
	if _, err := Run(t.Context(), &fake{}, nil, Options{}); err == nil {
		t.Error("a cluster without nodes is good")
	}
}
