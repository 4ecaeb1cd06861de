package podnetwork

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/podnetwork/ipam"
)

// runtime is a container runtime: it calls plugins by the library that runtimes use,
// with results in a cache as theirs.
type runtime struct {
	m   *machine
	pod *testnet.NS
	cni *libcni.CNIConfig
	log string // of the plugin "chained"
}

func newRuntime(t *testing.T) *runtime {
	t.Helper()
	m := newCluster(t).nodes[0]
	build := exec.Command("go", "build", "-o", m.path("bin/chained"), "./testdata/chained")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the chained plugin: %v: %s", err, out)
	}
	for _, s := range m.settings() {
		name, value, _ := strings.Cut(s, "=")
		t.Setenv(name, value)
	}
	return &runtime{m: m, pod: testnet.New(t, "pod"), log: m.path("log"),
		cni: libcni.NewCNIConfigWithCacheDir([]string{m.path("bin")}, m.path("cache"), nil)}
}

// list is a network of plugins; $LOG is the log of the chained ones.
func (r *runtime) list(version, plugins string) *libcni.NetworkConfigList {
	r.m.t.Helper()
	plugins = strings.ReplaceAll(plugins, "$LOG", fmt.Sprintf("%q", r.log))
	l, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion":%q,"name":"wayleave","plugins":[%s]}`,
		version, plugins))
	if err != nil {
		r.m.t.Fatal(err)
	}
	return l
}

func (r *runtime) conf(id string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: r.pod.Path(), IfName: "eth0",
		Args: [][2]string{{"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", id}},
		CapabilityArgs: map[string]any{"portMappings": []map[string]any{{"hostPort": 8080 + len(id),
			"containerPort": 80, "protocol": "tcp"}}}}
}

// in does a step in the node's namespace, as runtimes live there.
func (r *runtime) in(name string, want string, fn func() error) {
	r.m.t.Helper()
	err := r.m.ns.Do(fn)
	switch {
	case want == "" && err != nil:
		r.m.t.Errorf("%s: %v", name, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		r.m.t.Errorf("%s: %v; want %q", name, err, want)
	}
}

func (r *runtime) add(l *libcni.NetworkConfigList, id string) *current.Result {
	r.m.t.Helper()
	var out *current.Result
	r.in("ADD", "", func() error {
		res, err := r.cni.AddNetworkList(r.m.t.Context(), l, r.conf(id))
		if err != nil {
			return err
		}
		if res.Version() != l.CNIVersion {
			return fmt.Errorf("a result in %s", res.Version())
		}
		out, err = current.NewResultFromResult(res)
		return err
	})
	if out == nil {
		r.m.t.FailNow()
	}
	return out
}

func (r *runtime) check(l *libcni.NetworkConfigList, id, want string) {
	r.m.t.Helper()
	r.in("CHECK", want, func() error { return r.cni.CheckNetworkList(r.m.t.Context(), l, r.conf(id)) })
}

func (r *runtime) del(l *libcni.NetworkConfigList, id string) {
	r.m.t.Helper()
	r.in("DEL", "", func() error { return r.cni.DelNetworkList(r.m.t.Context(), l, r.conf(id)) })
	if left := r.m.holds(); left != "links [] <nil>\n" {
		r.m.t.Errorf("left: %s", left)
	}
}

// logged is a call of the chained plugin.
type logged struct {
	Command string
	Stdin   struct {
		CNIVersion, Name string
		PrevResult       *current.Result
		RuntimeConfig    map[string]any
	}
}

func (r *runtime) calls() []logged {
	r.m.t.Helper()
	raw, err := os.ReadFile(r.log)
	if err != nil {
		r.m.t.Fatal(err)
	}
	var out []logged
	for line := range strings.Lines(string(raw)) {
		var l logged
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			r.m.t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

const (
	ourPlugin = `{"type":"wayleave-cni"}`
	// behind is a plugin behind ours, with a capability.
	behind = `{"type":"chained","capabilities":{"portMappings":true},"log":$LOG}`
)

// TestAChainOfPlugins: 3 Adding, Checking, Deleting an attachment, in all versions.
func TestAChainOfPlugins(t *testing.T) {
	r := newRuntime(t)
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			r.m.t = t
			_ = os.Remove(r.log)
			l := r.list(version, ourPlugin+","+behind)
			added := r.add(l, "a")
			if version == "0.3.1" {
				r.check(l, "a", "does not support the CHECK command")
			} else {
				r.check(l, "a", "")
				r.pod.Run("ip", "route", "del", "default")
				r.check(l, "a", "lost its default route")
			}
			r.del(l, "a")
			r.del(l, "a")
			for _, c := range r.calls() {
				if c.Stdin.CNIVersion != version || c.Stdin.Name != "wayleave" ||
					c.Stdin.RuntimeConfig["portMappings"] == nil {
					t.Errorf("%s got %+v", c.Command, c.Stdin)
				}
			}
			if p := r.calls()[0].Stdin.PrevResult; p == nil || len(p.Interfaces) != 2 || len(p.IPs) != 2 ||
				p.IPs[0].Address.String() != added.IPs[0].Address.String() {
				t.Errorf("the plugin behind ours got %+v", p)
			}
		})
	}
}

// A plugin behind ours may take from the result and the pod; CHECK allows it.
func TestALaterPluginMayTakeARoute(t *testing.T) {
	r := newRuntime(t)
	l := r.list("1.1.0", ourPlugin+`,{"type":"chained","log":$LOG,"dropRoutes":true}`)
	r.add(l, "a")
	r.pod.Run("ip", "route", "del", "default")
	r.check(l, "a", "")
	r.del(l, "a")
}

// Our plugin behind another: what was there is passed through, see 2 ADD.
func TestOursBehindAnotherPlugin(t *testing.T) {
	r := newRuntime(t)
	first := `{"type":"chained","log":$LOG,"result":{"interfaces":[{"name":"lo","sandbox":"` + r.pod.Path() +
		`"}],"ips":[{"address":"127.0.0.1/8","interface":0}]}}`
	l := r.list("1.1.0", first+","+ourPlugin)
	added := r.add(l, "a")
	if len(added.Interfaces) != 3 || len(added.IPs) != 3 || *added.IPs[1].Interface != 2 ||
		added.IPs[0].Address.String() != "127.0.0.1/8" {
		t.Errorf("the result is %+v", added)
	}
	r.check(l, "a", "")
	r.pod.Run("ip", "-4", "addr", "flush", "dev", "eth0")
	r.check(l, "a", "lost the address")
	r.del(l, "a")
}

// "A delete must still be executed even if the add fails": behind ours.
func TestALaterPluginFails(t *testing.T) {
	r := newRuntime(t)
	l := r.list("1.1.0", ourPlugin+`,{"type":"chained","log":$LOG,"fail":true}`)
	r.in("ADD", "told to fail", func() error {
		_, err := r.cni.AddNetworkList(t.Context(), l, r.conf("a"))
		return err
	})
	r.del(l, "a")
}

// A runtime passes what the network's configuration says our plugin can.
func TestCapabilitiesByTheLibrary(t *testing.T) {
	r := newRuntime(t)
	l := r.list("1.1.0", `{"type":"wayleave-cni","capabilities":{"portMappings":true}}`)
	r.add(l, "a")
	if leases := r.m.net.leases.List(); len(leases) != 1 || len(leases[0].Ports) != 1 ||
		leases[0].Ports[0].HostPort != 8081 {
		t.Errorf("leases are %+v", leases)
	}
	r.check(l, "a", "")
	r.del(l, "a")
}

// … and what it says without reason is refused.
func TestCapabilitiesThatOursHasNot(t *testing.T) {
	r := newRuntime(t)
	l := r.list("1.1.0", `{"type":"wayleave-cni","capabilities":{"infinibandGUID":true}}`)
	r.in("ADD", "runtimeConfig.infinibandGUID", func() error {
		conf := r.conf("a")
		conf.CapabilityArgs["infinibandGUID"] = "c2:11"
		_, err := r.cni.AddNetworkList(t.Context(), l, conf)
		return err
	})
	r.del(l, "a")
}

// TestTheLibrarysOtherCalls: validation, STATUS and GC by libcni.
func TestTheLibrarysOtherCalls(t *testing.T) {
	r := newRuntime(t)
	file, err := libcni.NetworkConfFromFile(filepath.Join(r.m.path("conf"), ConfName)) // what is written for runtimes
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"0.2.0", "9.9.9"} {
		r.in("validate "+version, version, func() error {
			_, err := r.cni.ValidateNetworkList(t.Context(), r.list(version, ourPlugin))
			return err
		})
	}
	r.in("validate", "", func() error { _, err := r.cni.ValidateNetworkList(t.Context(), file); return err })
	r.in("STATUS", "", func() error { return r.cni.GetStatusNetworkList(t.Context(), file) })
	r.add(file, "a")
	r.pod = testnet.New(t, "keep")
	r.add(file, "keep")
	gc := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "keep", IfName: "eth0"}}}
	// The runtime forgot one, so only the plugin can know it.
	if err := os.RemoveAll(r.m.path("cache")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(r.m.path("cache"), "results"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r.in("GC", "", func() error { return r.cni.GCNetworkList(t.Context(), file, gc) })
		if l := r.m.net.leases.List(); len(l) != 1 || l[0].Container != "keep" {
			t.Errorf("leases are %v", l)
		}
	}
	r.in("GC", "cni.dev/valid-attachments", func() error { return r.cni.GCNetworkList(t.Context(), file, nil) })
	if !slices.ContainsFunc(r.m.net.leases.List(), func(l ipam.Lease) bool { return l.Container == "keep" }) {
		t.Error("a GC without attachments removed one")
	}
	r.m.stop()
	r.in("STATUS", "does not answer", func() error { return r.cni.GetStatusNetworkList(t.Context(), file) })
}
