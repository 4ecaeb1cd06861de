package podnetwork

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/ipam"
	"wayleave.dev/podnetwork/veth"
)

// rule is a row: a rule of the CNI specification 1.1.0 and a call that it judges.
// Where nothing is said, the call is an ADD of a container of its own, with all
// variables and a good configuration.
type rule struct {
	// says is the rule, behind its section: "2 ADD: …".
	says    string
	command string
	// env are changes, "NAME=" for a variable that is missing.
	env []string
	// conf is the standard input. $NETNS and $PREV stand for the path of the pod's
	// namespace and the result of ADD.
	conf string
	// before is done in the pod; added says that ADD was called before.
	before string
	added  bool
	// code is the error's, 0 for success; the message has want in it.
	code uint
	want string
	// after looks at what a good call left; input rows have none and can be put to
	// any plugin.
	after func(k *invocation) error
}

// keys is a good configuration with keys changed, in JSON; null takes one out.
func keys(changes string) string {
	var c map[string]any
	if err := json.Unmarshal([]byte(conf), &c); err != nil {
		panic(err)
	}
	if err := json.Unmarshal([]byte("{"+changes+"}"), &c); err != nil {
		panic(fmt.Sprintf("%s: %v", changes, err))
	}
	for k, v := range c {
		if v == nil && k != "prevResult" && k != "cni.dev/valid-attachments" {
			delete(c, k)
		}
	}
	out, _ := json.Marshal(c)
	return string(out)
}

const long = "a234567890123456" // 16 characters

// inputRules are judged by what goes in alone.
var inputRules = []rule{
	{says: "2 Parameters: CNI_COMMAND is the operation, and required", env: []string{"CNI_COMMAND="}, code: 4,
		want: "CNI_COMMAND"},
	{says: "2 CNI operations: there are ADD, DEL, CHECK, GC, STATUS and VERSION", command: "FOO", code: 4,
		want: `CNI_COMMAND: "FOO"`},
	{says: "2 CNI operations: in capitals", command: "add", code: 4, want: `CNI_COMMAND: "add"`},
	{says: "2 ADD: CNI_CONTAINERID is required", env: []string{"CNI_CONTAINERID="}, code: 4, want: "CNI_CONTAINERID"},
	{says: "2 ADD: CNI_NETNS is required", env: []string{"CNI_NETNS="}, code: 4, want: "CNI_NETNS"},
	{says: "2 ADD: CNI_IFNAME is required", env: []string{"CNI_IFNAME="}, code: 4, want: "CNI_IFNAME"},
	{says: "5 Error: code 4 contains the names of the invalid variables", env: []string{"CNI_CONTAINERID=",
		"CNI_NETNS=", "CNI_IFNAME="}, code: 4, want: "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"},
	{says: "2 CHECK: CNI_CONTAINERID is required", command: "CHECK", env: []string{"CNI_CONTAINERID="}, code: 4,
		want: "CNI_CONTAINERID"},
	{says: "2 CHECK: CNI_NETNS is required", command: "CHECK", env: []string{"CNI_NETNS="}, code: 4, want: "CNI_NETNS"},
	{says: "2 CHECK: CNI_IFNAME is required", command: "CHECK", env: []string{"CNI_IFNAME="}, code: 4,
		want: "CNI_IFNAME"},
	{says: "2 DEL: CNI_CONTAINERID is required", command: "DEL", env: []string{"CNI_CONTAINERID="}, code: 4,
		want: "CNI_CONTAINERID"},
	{says: "2 DEL: CNI_IFNAME is required", command: "DEL", env: []string{"CNI_IFNAME="}, code: 4, want: "CNI_IFNAME"},
	{says: "2 Parameters: a container ID starts with a letter or digit", env: []string{"CNI_CONTAINERID=-a"}, code: 4,
		want: `CNI_CONTAINERID: "-a"`},
	{says: "2 Parameters: a container ID has no slash", env: []string{"CNI_CONTAINERID=a/../b"}, code: 4,
		want: `CNI_CONTAINERID: "a/../b"`},
	{says: "2 Parameters: a container ID has no space", env: []string{"CNI_CONTAINERID=a b"}, code: 4,
		want: `CNI_CONTAINERID: "a b"`},
	{says: "2 Parameters: a container ID is checked on DEL, too", command: "DEL", env: []string{"CNI_CONTAINERID=a/b"},
		code: 4, want: "CNI_CONTAINERID"},
	{says: "2 Parameters: an interface name that cannot be used is an error: too long",
		env: []string{"CNI_IFNAME=" + long}, code: 4, want: `CNI_IFNAME: "` + long},
	{says: "2 Parameters: … with a slash", env: []string{"CNI_IFNAME=a/b"}, code: 4, want: `CNI_IFNAME: "a/b"`},
	{says: "2 Parameters: … with a colon", env: []string{"CNI_IFNAME=a:b"}, code: 4, want: `CNI_IFNAME: "a:b"`},
	{says: "2 Parameters: … with a space", env: []string{"CNI_IFNAME=a b"}, code: 4, want: `CNI_IFNAME: "a b"`},
	{says: "2 Parameters: … a dot", env: []string{"CNI_IFNAME=."}, code: 4, want: `CNI_IFNAME: "."`},
	{says: "2 Parameters: … two dots", env: []string{"CNI_IFNAME=.."}, code: 4, want: `CNI_IFNAME: ".."`},
	{says: "2 Parameters: … a pattern of the kernel, which would choose another", env: []string{"CNI_IFNAME=eth%d"},
		code: 4, want: `CNI_IFNAME: "eth%d"`},
	{says: "2 Parameters: CNI_NETNS is a path of a network namespace: of nothing",
		env: []string{"CNI_NETNS=/nowhere/x"}, code: 4, want: "CNI_NETNS: open /nowhere/x"},
	{says: "2 Parameters: … of a file", env: []string{"CNI_NETNS=/dev/null"}, code: 4,
		want: "CNI_NETNS: /dev/null is not a network namespace"},
	{says: "2 Parameters: … of a namespace of another kind", env: []string{"CNI_NETNS=/proc/self/ns/mnt"}, code: 4,
		want: "CNI_NETNS"},
	{says: "2 Overview: the plugin runs in the node's namespace, the container's is another",
		env: []string{"CNI_NETNS=/proc/self/ns/net"}, code: 4,
		want: "CNI_NETNS: /proc/self/ns/net is the network namespace of the node"},
	{says: "2 Parameters: CNI_ARGS is FOO=BAR;ABC=123: a word alone", env: []string{"CNI_ARGS=x"}, code: 4,
		want: `CNI_ARGS: "x"`},
	{says: "2 Parameters: … no key", env: []string{"CNI_ARGS=A=1;=y"}, code: 4, want: `CNI_ARGS: "=y"`},
	{says: "2 Overview: the configuration is JSON", conf: "{", code: 6, want: "network configuration"},
	{says: "2 Overview: … and there is one", conf: " ", code: 6, want: "network configuration"},
	{says: "1 Configuration format: it is an object", conf: "[]", code: 6, want: "network configuration"},
	{says: "2 Overview: … and nothing follows", conf: conf + "x", code: 6, want: "network configuration"},
	{says: "5 Error: code 6 for a version that cannot be decoded", conf: keys(`"cniVersion":"abc"`), code: 6,
		want: "cniVersion"},
	{says: "1 Configuration format: cniVersion is a string", conf: keys(`"cniVersion":1`), code: 6, want: "cniVersion"},
	{says: "5 Error: code 1 for a version that is not spoken: old", conf: keys(`"cniVersion":"0.2.0"`), code: 1,
		want: `cniVersion: "0.2.0"`},
	{says: "5 Error: … far", conf: keys(`"cniVersion":"9.9.9"`), code: 1, want: `cniVersion: "9.9.9"`},
	{says: "5 Error: … of the same major", conf: keys(`"cniVersion":"1.2.0"`), code: 1, want: `cniVersion: "1.2.0"`},
	{says: "5 Error: … none, which is 0.1.0", conf: keys(`"cniVersion":null`), code: 1, want: `cniVersion: "0.1.0"`},
	{says: "5 Error: code 1 on DEL, too", command: "DEL", conf: keys(`"cniVersion":"9.9.9"`), code: 1,
		want: `cniVersion: "9.9.9"`},
	{says: "Versions: CHECK is there from 0.4.0 on", command: "CHECK", conf: keys(`"cniVersion":"0.3.1"`), code: 1,
		want: `cniVersion: "0.3.1" has no CHECK`},
	{says: "Versions: STATUS is there from 1.1.0 on", command: "STATUS", conf: keys(`"cniVersion":"1.0.0"`), code: 1,
		want: `cniVersion: "1.0.0" has no STATUS`},
	{says: "Versions: GC is there from 1.1.0 on", command: "GC", conf: keys(`"cniVersion":"0.4.0"`), code: 1,
		want: `cniVersion: "0.4.0" has no GC`},
	{says: "3 Deriving: name is always there", conf: keys(`"name":null`), code: 7, want: "name: is missing"},
	{says: "1 Configuration format: name has no characters that paths have not", conf: keys(`"name":"a/b"`), code: 7,
		want: `name: "a/b"`},
	{says: "1 Configuration format: name starts with a letter or digit", conf: keys(`"name":".a"`), code: 7,
		want: `name: ".a"`},
	{says: "1 Plugin configuration objects: type is required", conf: keys(`"type":null`), code: 7,
		want: "type: is missing"},
	{says: "2 CHECK: prevResult is needed", command: "CHECK", added: true, code: 7, want: "prevResult"},
	{says: "2 CHECK: prevResult is a result", command: "CHECK", added: true,
		conf: keys(`"prevResult":{"ips":[{"address":"no"}]}`), code: 7, want: "prevResult"},
	{says: "2 CHECK: … an object", command: "CHECK", added: true, conf: keys(`"prevResult":7`), code: 6,
		want: "prevResult"},
	{says: "2 ADD: prevResult is a result", conf: keys(`"prevResult":{"interfaces":"no"}`), code: 7,
		want: "prevResult"},
	{says: "2 GC: cni.dev/valid-attachments is needed", command: "GC", code: 7,
		want: "cni.dev/valid-attachments: is missing"},
	{says: "2 GC: … a list", command: "GC", conf: keys(`"cni.dev/valid-attachments":null`), code: 7,
		want: "cni.dev/valid-attachments"},
	{says: "2 GC: … of objects", command: "GC", conf: keys(`"cni.dev/valid-attachments":["x"]`), code: 6,
		want: "cni.dev/valid-attachments"},
	{says: "2 GC: … with containerID", command: "GC", conf: keys(`"cni.dev/valid-attachments":[{"ifname":"eth0"}]`),
		code: 7, want: "cni.dev/valid-attachments[0]"},
	{says: "2 GC: … with ifname", command: "GC",
		conf: keys(`"cni.dev/valid-attachments":[{"containerID":"x","ifname":"eth0"},{"containerID":"x"}]`), code: 7,
		want: "cni.dev/valid-attachments[1]"},
	{says: "5 Error: code 2 contains key and value of what is not supported: ipam",
		conf: keys(`"ipam":{"type":"static"}`), code: 2, want: `ipam: {"type":"static"}`},
	{says: "5 Error: … ipMasq", conf: keys(`"ipMasq":true`), code: 2, want: "ipMasq: true"},
	{says: "5 Error: … runtimeConfig, of capabilities that the plugin has not",
		conf: keys(`"runtimeConfig":{"infinibandGUID":"c2:11"}`), code: 2,
		want: `runtimeConfig.infinibandGUID: "c2:11"`},
	{says: "5 Error: code 7 for capabilities that cannot be: a port without a protocol",
		conf: keys(`"runtimeConfig":{"portMappings":[{"hostPort":80}]}`), code: 7, want: "portMappings[0]"},
	{says: "5 Error: … a burst without a rate", conf: keys(`"runtimeConfig":{"bandwidth":{"ingressBurst":1000}}`),
		code: 7, want: "runtimeConfig.bandwidth.ingressRate"},
	{says: "5 Error: … an address", conf: keys(`"runtimeConfig":{"ips":["here"]}`), code: 7,
		want: `runtimeConfig.ips: "here"`},
	{says: "5 Error: … a MAC address", conf: keys(`"runtimeConfig":{"mac":"here"}`), code: 7,
		want: `runtimeConfig.mac: "here"`},
	{says: "5 Error: code 6 for capabilities that cannot be read", conf: keys(`"runtimeConfig":{"mac":7}`), code: 6,
		want: "runtimeConfig"},
	{says: "5 Error: code 5 for a standard input that cannot be read", conf: "a folder", code: 5,
		want: "standard input"},
	{says: "2 CHECK: code 3 for a container that is not known", command: "CHECK", conf: keys(`"prevResult":{}`),
		code: 3, want: "has no lease for eth0"},
}

// stateRules are judged by what they find and leave.
var stateRules = []rule{
	{says: "2 ADD: makes CNI_IFNAME in CNI_NETNS, and answers with a result", after: whole},
	{says: "2 ADD: another name of the interface", env: []string{"CNI_IFNAME=net1"}, after: whole},
	{says: "2 ADD: CNI_PATH is optional", env: []string{"CNI_PATH="}, after: whole},
	{says: "2 ADD: CNI_ARGS is optional", env: []string{"CNI_ARGS="}, after: whole},
	{says: "2 Parameters: CNI_ARGS has keys of others, and a last semicolon",
		env: []string{"CNI_ARGS=FOO=BAR;ABC=1=2;"}, after: whole},
	{says: "1 Other keys: unknown ones may be let pass (or refused)",
		conf: keys(`"keyA":["x"],"cni.dev/x":1,"args":{"a":1},"capabilities":{"mac":true}`), after: whole},
	{says: "1 Well-known keys: dns is in the result", conf: keys(`"dns":{"nameservers":["10.96.0.10"],"search":["a"]}`),
		after: func(k *invocation) error {
			if r := k.result(); !slices.Equal(r.DNS.Nameservers, []string{"10.96.0.10"}) ||
				!slices.Equal(r.DNS.Search, []string{"a"}) {
				return fmt.Errorf("dns is %v", r.DNS)
			}
			return whole(k)
		}},
	{says: "3 runtimeConfig: nothing asked for is no error", conf: keys(`"runtimeConfig":{"portMappings":[]}`),
		after: whole},
	{says: "5 ADD Success: cniVersion is the input's: 0.3.0", conf: keys(`"cniVersion":"0.3.0"`), after: whole},
	{says: "5 ADD Success: … 0.3.1", conf: keys(`"cniVersion":"0.3.1"`), after: whole},
	{says: "5 ADD Success: … 0.4.0", conf: keys(`"cniVersion":"0.4.0"`), after: whole},
	{says: "5 ADD Success: … 1.0.0", conf: keys(`"cniVersion":"1.0.0"`), after: whole},
	{says: "5 ADD Success: prevResult is passed through, with what was added", after: whole,
		conf: keys(
			`"prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"lo","sandbox":"$NETNS"}],` +
				`"ips":[{"address":"127.0.0.1/8","interface":0}],"routes":[{"dst":"10.9.0.0/16"}],` +
				`"dns":{"domain":"x"}}`)},
	{says: "2 ADD: an interface of that name is an error, and is not touched",
		before: "ip link add eth0 type veth peer name x", code: 4,
		want:  "CNI_IFNAME: the network namespace has an interface eth0 already",
		after: func(k *invocation) error { return k.finds("ip -o link show eth0", "eth0") }},
	{says: "2 ADD: not twice for one container and interface", added: true, code: 4, want: "CNI_IFNAME",
		after: reaches},
	{says: "2 ADD: … not even where the first was tampered with", added: true, before: "ip addr flush dev eth0",
		code: 4, want: "CNI_IFNAME",
		after: func(k *invocation) error { return k.finds("ip -o link show eth0", "eth0") }},
	{says: "2 ADD: … nor in another namespace", added: true, env: []string{"CNI_NETNS=$OTHER"}, code: 4,
		want: "CNI_IFNAME", after: reaches},
	{says: "2 ADD: … nor of another container in the same namespace", added: true,
		env: []string{"CNI_CONTAINERID=another"}, code: 4, want: "CNI_IFNAME", after: reaches},
	{says: "2 ADD: one container may have two interfaces", added: true, env: []string{"CNI_IFNAME=net1"},
		after: reaches},
	{says: "2 ADD: again where the first one's link is gone", added: true, before: "ip link del eth0", after: whole},
	{says: "2 DEL: deletes the interface, and prints nothing", command: "DEL", added: true, after: gone},
	{says: "2 DEL: prevResult may be missing, or be there", command: "DEL", added: true,
		conf: keys(`"prevResult":"$PREV"`), after: gone},
	{says: "2 DEL: … or be none that can be read", command: "DEL", added: true,
		conf: keys(`"prevResult":7`), after: gone},
	{says: "2 DEL: success where nothing was added", command: "DEL", after: gone},
	{says: "2 DEL: success where the interface is gone", command: "DEL", added: true,
		before: "ip link del eth0", after: gone},
	{says: "2 DEL: CNI_NETNS is optional", command: "DEL", added: true, env: []string{"CNI_NETNS="}, after: gone},
	{says: "2 DEL: success where the namespace is gone", command: "DEL", added: true,
		env: []string{"CNI_NETNS=/nowhere/x"}, after: gone},
	{says: "2 DEL: to the fullest extent: CNI_ARGS that cannot be read", command: "DEL", added: true,
		env: []string{"CNI_ARGS=x"}, after: gone},
	{says: "2 DEL: … without CNI_PATH", command: "DEL", added: true, env: []string{"CNI_PATH="}, after: gone},
	{says: "2 DEL: … with keys that ADD refuses", command: "DEL", added: true,
		conf: keys(`"ipam":{"type":"static"}`), after: gone},
	{says: "2 DEL: touches no interface of another container", command: "DEL", added: true,
		env: []string{"CNI_CONTAINERID=another"}, after: reaches},
	{says: "2 DEL: in 0.3.1", command: "DEL", added: true, conf: keys(`"cniVersion":"0.3.1"`), after: gone},
	{says: "2 CHECK: success at once behind ADD", command: "CHECK", added: true, conf: keys(`"prevResult":"$PREV"`)},
	{says: "2 CHECK: finds an address missing", command: "CHECK", added: true, before: "ip -4 addr flush dev eth0",
		conf: keys(`"prevResult":"$PREV"`), code: 102, want: "lost the address"},
	{says: "2 CHECK: … of IPv6", command: "CHECK", added: true, before: "ip -6 addr flush dev eth0 scope global",
		conf: keys(`"prevResult":"$PREV"`), code: 102, want: "lost the address fd"},
	{says: "2 CHECK: … a route", command: "CHECK", added: true, before: "ip route del default",
		conf: keys(`"prevResult":"$PREV"`), code: 102, want: "lost its default route by 169.254.1.1"},
	{says: "2 CHECK: … of IPv6", command: "CHECK", added: true, before: "ip -6 route del default",
		conf: keys(`"prevResult":"$PREV"`), code: 102, want: "lost its default route by fe80::1"},
	{says: "2 CHECK: … the interface", command: "CHECK", added: true, before: "ip link del eth0",
		conf: keys(`"prevResult":"$PREV"`), code: 102, want: "no interface eth0"},
	{says: "2 CHECK: … the interface down", command: "CHECK", added: true, before: "ip link set eth0 down",
		conf: keys(`"prevResult":"$PREV"`), code: 102, want: "eth0 is down"},
	{says: "2 CHECK: … an address that the node cannot reach", command: "CHECK", added: true,
		before: "ip link set eth0 address 0a:00:00:00:00:01", conf: keys(`"prevResult":"$PREV"`), code: 102,
		want: "MAC address"},
	{says: "2 CHECK: is of what prevResult lists: no interface", command: "CHECK", added: true,
		conf: keys(`"prevResult":{"ips":[]}`), code: 7, want: "prevResult: interfaces: eth0"},
	{says: "2 CHECK: … no address of ours", command: "CHECK", added: true, code: 7, want: "prevResult: ips",
		conf: keys(
			`"prevResult":{"interfaces":[{"name":"eth0","sandbox":"$NETNS"}],"ips":[{"address":"10.9.9.9/32",` +
				`"interface":0}]}`)},
	{says: "2 CHECK: the same CNI_NETNS as ADD's", command: "CHECK", added: true, env: []string{"CNI_NETNS=$OTHER"},
		conf: keys(`"prevResult":"$PREV"`), code: 7, want: "prevResult: interfaces: eth0"},
	{says: "2 CHECK: a container that was deleted is not known", command: "CHECK", added: true, before: "DEL",
		conf: keys(`"prevResult":"$PREV"`), code: 3, want: "has no lease"},
	{says: "2 STATUS: success where ADD can be served, with no variable but the command", command: "STATUS",
		env: []string{"CNI_CONTAINERID=", "CNI_NETNS=", "CNI_IFNAME=", "CNI_ARGS=", "CNI_PATH="}},
	{says: "2 GC: keeps what is in cni.dev/valid-attachments", command: "GC", added: true,
		conf: keys(`"cni.dev/valid-attachments":[{"containerID":"$ID","ifname":"eth0"}]`), after: reaches},
	{says: "2 GC: removes what is not", command: "GC", added: true,
		conf: keys(`"cni.dev/valid-attachments":[]`), after: gone},
	{says: "2 GC: … an attachment is container and interface", command: "GC", added: true,
		conf: keys(
			`"cni.dev/valid-attachments":[{"containerID":"$ID","ifname":"net1"},{"containerID":"x","ifname":"eth0"}]`),
		after: gone},
}

// bench is where rules are judged.
type bench struct {
	t     *testing.T
	m     *machine
	other *testnet.NS
	count int
}

// invocation is one row's, with the pod that it is about.
type invocation struct {
	rule
	m    *machine
	pod  *testnet.NS
	id   string
	name string // CNI_IFNAME
	prev string
	// out and stderr are what the plugin printed; exit is its code.
	out, stderr string
	exit        int
}

// exec runs a plugin in the node's namespace as a runtime does.
func (k *invocation) exec(bin, command, stdin string, env ...string) error {
	cmd := exec.Command(bin)
	vars := map[string]string{"CNI_COMMAND": command, "CNI_CONTAINERID": k.id, "CNI_IFNAME": k.name,
		"CNI_NETNS": k.pod.Path(),
		"CNI_ARGS":  "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + k.id, "CNI_PATH": filepath.Dir(bin)}
	for _, change := range env {
		name, value, _ := strings.Cut(change, "=")
		vars[name] = value
	}
	cmd.Env = append(k.m.settings(), "PATH="+os.Getenv("PATH"))
	for name, value := range vars {
		if value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Stdin = strings.NewReader(stdin)
	if stdin == "a folder" {
		dir, err := os.Open("/")
		if err != nil {
			return err
		}
		defer dir.Close()
		cmd.Stdin = dir
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := k.m.ns.Do(cmd.Run)
	k.out, k.stderr, k.exit = out.String(), errs.String(), cmd.ProcessState.ExitCode()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil
	}
	return err
}

// answer is an error in the specification's form.
type answer struct {
	CNIVersion string `json:"cniVersion"`
	types.Error
}

// failure reads the standard output of a call that failed.
func (k *invocation) failure() (answer, error) {
	var a answer
	dec := json.NewDecoder(strings.NewReader(k.out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil || dec.More() {
		return a, fmt.Errorf("the answer is no error: %v: %s", err, k.out)
	}
	return a, nil
}

func (k *invocation) result() *current.Result {
	var r current.Result
	_ = json.Unmarshal([]byte(k.out), &r)
	return &r
}

// finds runs a command in the pod and looks for a word.
func (k *invocation) finds(command, want string) error {
	out, err := k.pod.Try("sh", "-c", command)
	if err == nil && !strings.Contains(out, want) {
		err = fmt.Errorf("%s: no %s in %s", command, want, out)
	}
	return err
}

// judge says what of an answer is not as the rule wants it.
func (k *invocation) judge() error {
	if k.code == 0 {
		if k.exit != 0 {
			return fmt.Errorf("exit %d: %s%s", k.exit, k.out, k.stderr)
		}
		if command := cmp.Or(k.command, "ADD"); command != "ADD" && k.out != "" {
			return fmt.Errorf("%s printed %q", command, k.out)
		}
		return nil
	}
	if k.exit == 0 {
		return fmt.Errorf("exit 0: %s", k.out)
	}
	a, err := k.failure()
	if err != nil {
		return err
	}
	if a.Code != k.code || !strings.Contains(a.Msg, k.want) || a.CNIVersion == "" {
		return fmt.Errorf("%s; want code %d and %q", k.out, k.code, k.want)
	}
	if strings.Contains(k.rule.conf, `"cniVersion":"`+a.CNIVersion+`"`) || a.CNIVersion == "1.1.0" {
		return nil
	}
	return fmt.Errorf("an error in version %s", a.CNIVersion)
}

// prepare makes the pod of a row and puts its names into the row.
func (b *bench) prepare(r rule) *invocation {
	b.t.Helper()
	b.count++
	k := &invocation{rule: r, m: b.m, id: fmt.Sprintf("row%d", b.count), name: "eth0", pod: testnet.New(b.t, "row")}
	if r.added {
		if err := k.exec(b.m.path("bin/wayleave-cni"), "ADD", conf); err != nil || k.exit != 0 {
			b.t.Fatalf("ADD: %v: %s", err, k.out)
		}
		k.prev = k.out
	}
	if r.before == "DEL" {
		if err := k.exec(b.m.path("bin/wayleave-cni"), "DEL", conf); err != nil || k.exit != 0 {
			b.t.Fatalf("DEL: %v: %s", err, k.out)
		}
	} else if r.before != "" {
		k.pod.Run("sh", "-c", r.before)
	}
	fill := strings.NewReplacer("$NETNS", k.pod.Path(), `"$PREV"`, k.prev, "$ID", k.id, "$OTHER",
		b.other.Path()).Replace
	k.rule.conf = fill(cmp.Or(r.conf, conf))
	k.env = nil
	for _, e := range r.env {
		if name, ok := strings.CutPrefix(e, "CNI_IFNAME="); ok {
			k.name = name
		}
		k.env = append(k.env, fill(e))
	}
	return k
}

func newBench(t *testing.T) *bench {
	return &bench{t: t, m: newCluster(t).nodes[0], other: testnet.New(t, "other")}
}

// links and leases of the node, which a call that fails must not change.
func (m *machine) holds() string {
	var out strings.Builder
	for _, l := range m.net.leases.List() {
		fmt.Fprintln(&out, "lease", l.Container, l.Interface, l.IPs)
	}
	names, err := m.net.host.Names()
	slices.Sort(names)
	fmt.Fprintln(&out, "links", names, err)
	return out.String()
}

// TestTheSpecification puts every rule of CNI 1.1.0 to the real plugin.
func TestTheSpecification(t *testing.T) {
	b := newBench(t)
	for _, r := range slices.Concat(inputRules, stateRules) {
		t.Run(r.says, func(t *testing.T) {
			b.t = t
			k := b.prepare(r)
			before := b.m.holds()
			if err := k.exec(b.m.path("bin/wayleave-cni"), cmp.Or(r.command, "ADD"), k.rule.conf,
				k.env...); err != nil {
				t.Fatal(err)
			}
			if err := k.judge(); err != nil {
				t.Error(err)
			}
			if now := b.m.holds(); r.code != 0 && now != before {
				t.Errorf("a call that failed changed\n%sto\n%s", before, now)
			}
			if r.after != nil {
				if err := r.after(k); err != nil {
					t.Error(err)
				}
			}
			b.clean(k)
		})
	}
}

// clean ends a row's pod: nothing may be left.
func (b *bench) clean(k *invocation) {
	b.t.Helper()
	for _, name := range []string{"eth0", "net1"} {
		if err := k.exec(b.m.path("bin/wayleave-cni"), "DEL", conf, "CNI_IFNAME="+name); err != nil ||
			k.exit != 0 || k.out != "" {
			b.t.Errorf("DEL: %v: %s", err, k.out)
		}
	}
	if left := b.m.holds(); left != "links [] <nil>\n" {
		b.t.Errorf("left: %s", left)
	}
}

// whole looks at the result of an ADD, by section 5, and at the pod.
func whole(k *invocation) error {
	var asked struct {
		CNIVersion string
		PrevResult current.Result
	}
	if err := json.Unmarshal([]byte(k.rule.conf), &asked); err != nil {
		return err
	}
	r := k.result()
	prev := asked.PrevResult
	if r.CNIVersion != asked.CNIVersion || len(r.Interfaces) != len(prev.Interfaces)+2 || len(r.IPs) != len(prev.IPs)+
		2 || len(r.Routes) != len(prev.Routes)+2 {
		return fmt.Errorf("the result is %s", k.out)
	}
	if len(prev.Interfaces) > 0 && (*r.Interfaces[0] != *prev.Interfaces[0] ||
		r.IPs[0].Address.String() != prev.IPs[0].Address.String() || *r.IPs[0].Interface != 0 ||
		r.Routes[0].String() != prev.Routes[0].String() || r.DNS.Domain != prev.DNS.Domain) {
		return fmt.Errorf("the previous result is not in %s", k.out)
	}
	n := len(prev.Interfaces)
	host, pod := r.Interfaces[n], r.Interfaces[n+1]
	if host.Name != call.HostName(k.id, k.name) || host.Mac != veth.HostMAC().String() || host.Sandbox != "" {
		return fmt.Errorf("the node's interface is %v", host)
	}
	if modern := asked.CNIVersion >= "1"; modern && (host.Mtu != 1500 || pod.Mtu != 1500) {
		return fmt.Errorf("MTU: %v, %v", host, pod)
	}
	if pod.Name != k.name || pod.Sandbox != k.pod.Path() {
		return fmt.Errorf("the pod's interface is %v", pod)
	}
	if err := k.finds("ip -o link show "+k.name, "link/ether "+pod.Mac); err != nil {
		return err
	}
	return errors.Join(addresses(k, r, n+1), defaults(k, r.Routes[len(prev.Routes):]))
}

func addresses(k *invocation, r *current.Result, index int) error {
	for i, gw := range []string{"169.254.1.1", "fe80::1"} {
		ip := r.IPs[len(r.IPs)-2+i]
		if ip.Interface == nil || *ip.Interface != index || ip.Gateway.String() != gw {
			return fmt.Errorf("address %v", ip)
		}
		if err := k.finds("ip -o addr show "+k.name, ip.Address.String()); err != nil {
			// ip prints no length where it is the whole address's
			if err := k.finds("ip -o addr show "+k.name, ip.Address.IP.String()); err != nil {
				return err
			}
		}
	}
	return nil
}

func defaults(k *invocation, list []*types.Route) error {
	for i, want := range [][2]string{{"0.0.0.0/0", "169.254.1.1"}, {"::/0", "fe80::1"}} {
		if r := list[i]; r.Dst.String() != want[0] || r.GW.String() != want[1] {
			return fmt.Errorf("route %v, want %v", r, want)
		}
		if err := k.finds(fmt.Sprintf("ip -%d route show default", 4+2*i), want[1]); err != nil {
			return err
		}
	}
	return nil
}

// gone says that the row's container has nothing any more.
func gone(k *invocation) error {
	if _, ok := k.m.net.leases.Get(ipam.Key{Container: k.id, Interface: k.name}); ok {
		return errors.New("the lease is there")
	}
	if k.finds("ip -o link show "+k.name, k.name) == nil {
		return fmt.Errorf("%s is there", k.name)
	}
	return nil
}

// reaches says that the pod that was added before still reaches its node.
func reaches(k *invocation) error {
	return k.finds("ping -c 1 -W 2 172.30.0.11 || true", "1 received")
}

// TestVersion: 2 VERSION and 5 VERSION Success.
func TestVersion(t *testing.T) {
	b := newBench(t)
	b.m.stop() // needs no agent
	for stdin, want := range map[string]string{`{"cniVersion":"0.4.0"}`: "0.4.0", `{"cniVersion":"9.9.9"}`: "9.9.9",
		"": "1.1.0"} {
		k := b.prepare(rule{})
		none := []string{"CNI_CONTAINERID=", "CNI_NETNS=", "CNI_IFNAME=", "CNI_ARGS=", "CNI_PATH="}
		if err := k.exec(b.m.path("bin/wayleave-cni"), "VERSION", stdin, none...); err != nil || k.exit != 0 {
			t.Fatalf("%v: %s", err, k.out)
		}
		var v struct {
			CNIVersion        string
			SupportedVersions []string
		}
		if err := json.Unmarshal([]byte(k.out), &v); err != nil || v.CNIVersion != want ||
			strings.Join(v.SupportedVersions, " ") != "0.3.0 0.3.1 0.4.0 1.0.0 1.1.0" {
			t.Errorf("asked %q: %v: %s", stdin, err, k.out)
		}
	}
	k := b.prepare(rule{code: 6, want: "standard input"})
	if err := errors.Join(k.exec(b.m.path("bin/wayleave-cni"), "VERSION", "{"), k.judge()); err != nil {
		t.Error(err)
	}
}

// TestStatusFailsUntilAddCanBeServed: 2 STATUS.
func TestStatusFailsUntilAddCanBeServed(t *testing.T) {
	c := newCluster(t)
	m := c.nodes[0]
	expect := func(command string, code uint, want string) {
		t.Helper()
		b := &bench{t: t, m: m, other: c.outside}
		k := b.prepare(rule{command: command, code: code, want: want})
		if err := errors.Join(k.exec(m.path("bin/wayleave-cni"), command, conf), k.judge()); err != nil {
			t.Error(command, err)
		}
	}
	node, _ := c.store.Snapshot().Node(m.name)
	c.put(&model.Node{Name: m.name, InternalIPs: node.InternalIPs})
	expect("STATUS", 50, "spec.podCIDRs is empty")
	expect("ADD", 11, "spec.podCIDRs is empty")
	// Of a /30 pods get all four addresses.
	c.put(&model.Node{Name: m.name, InternalIPs: node.InternalIPs,
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/30")}})
	for i := range 4 {
		expect("STATUS", 0, "")
		m.mustAdd(fmt.Sprintf("full%d", i))
	}
	expect("STATUS", 50, "pod network 10.244.1.0/30 is full")
	expect("ADD", 101, "pod network 10.244.1.0/30 is full")
}

// TestCallsWithoutTheAgent: 2 DEL "best effort", and an error that says why else.
func TestCallsWithoutTheAgent(t *testing.T) {
	c := newCluster(t)
	b := &bench{t: t, m: c.nodes[0], other: c.outside}
	pod := b.prepare(rule{added: true})
	b.m.stop()
	for command, code := range map[string]uint{"ADD": 11, "CHECK": 11, "GC": 11, "STATUS": 50} {
		k := b.prepare(rule{command: command, code: code, want: "the wayleave agent does not answer: dial unix " +
			b.m.path("cni.sock")})
		if err := errors.Join(k.exec(b.m.path("bin/wayleave-cni"), command, conf), k.judge()); err != nil {
			t.Error(command, err)
		}
	}
	// Of another container, in the same namespace: the pod keeps its interface.
	for range 2 {
		k := *pod
		if k.id = "another"; k.exec(b.m.path("bin/wayleave-cni"), "DEL", conf) != nil || k.exit != 0 || k.out != "" {
			t.Errorf("DEL: %s", k.out)
		}
	}
	if err := pod.finds("ip -o link show eth0", "eth0"); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := pod.exec(b.m.path("bin/wayleave-cni"), "DEL", conf, "CNI_NETNS=/nowhere/x"); err != nil ||
			pod.exit != 0 || pod.out != "" {
			t.Errorf("DEL: %v: %s", err, pod.out)
		}
	}
	if pod.finds("ip -o link show eth0", "eth0") == nil {
		t.Error("the interface is there")
	}
	if left, err := os.ReadDir(b.m.path("del")); err != nil || len(left) != 2 {
		t.Errorf("tombstones: %v, %v", left, err)
	}
	b.m.start(c.store)
	if left := b.m.holds(); left != "links [] <nil>\n" {
		t.Errorf("left: %s", left)
	}
}

// A tombstone is of the attachment before it, not of one that was added since.
func TestATombstoneEndsNoLaterAttachment(t *testing.T) {
	c := newCluster(t)
	b := &bench{t: t, m: c.nodes[0], other: c.outside}
	k := b.prepare(rule{added: true})
	if err := k.exec(b.m.path("bin/wayleave-cni"), "DEL", conf, "WAYLEAVE_CNI_SOCKET=/nowhere/x"); err != nil ||
		k.exit != 0 {
		t.Fatalf("DEL: %v: %s", err, k.out)
	}
	if err := k.exec(b.m.path("bin/wayleave-cni"), "ADD", conf); err != nil || k.exit != 0 {
		t.Fatalf("ADD: %v: %s", err, k.out)
	}
	b.m.stop()
	b.m.start(c.store)
	if err := reaches(k); err != nil {
		t.Error(err)
	}
}

// TestAddNeedsNoModel: ADD needs the node's own facts, and neither the pod nor a
// server that could be asked for it. The test has none.
func TestAddNeedsNoModel(t *testing.T) {
	c := newCluster(t)
	b := &bench{t: t, m: c.nodes[0], other: c.outside}
	if n := c.store.Snapshot().Count(model.PodKind); n != 0 {
		t.Fatalf("%d pods are known", n)
	}
	k := b.prepare(rule{added: true})
	if err := reaches(k); err != nil {
		t.Error(err)
	}
	if n := c.store.Snapshot().Count(model.PodKind); n != 0 {
		t.Errorf("%d pods are known", n)
	}
}

// TestManyContainersAtOnce: 3 Lifecycle "plugins must handle being executed
// concurrently across different containers".
func TestManyContainersAtOnce(t *testing.T) {
	b := newBench(t)
	calls := make([]*invocation, 30)
	for i := range calls {
		calls[i] = b.prepare(rule{})
	}
	atOnce(t, calls, func(k *invocation) error {
		return errors.Join(k.exec(b.m.path("bin/wayleave-cni"), "ADD", conf), k.judge())
	})
	seen := map[string]string{}
	for _, k := range calls {
		if err := errors.Join(whole(k), reaches(k)); err != nil {
			t.Errorf("%s: %v", k.id, err)
		}
		for _, ip := range k.result().IPs {
			if other, ok := seen[ip.Address.String()]; ok {
				t.Errorf("%s and %s have %s", other, k.id, ip.Address.String())
			}
			seen[ip.Address.String()] = k.id
		}
	}
	atOnce(t, calls, func(k *invocation) error {
		k.command = "DEL"
		return errors.Join(k.exec(b.m.path("bin/wayleave-cni"), "DEL", conf), k.judge())
	})
	if left := b.m.holds(); left != "links [] <nil>\n" {
		t.Errorf("left: %s", left)
	}
}

func atOnce(t *testing.T, calls []*invocation, fn func(k *invocation) error) {
	t.Helper()
	errs := make([]error, len(calls))
	var wg sync.WaitGroup
	for i, k := range calls {
		wg.Go(func() { errs[i] = fn(k) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// TestCallsForOneContainerAtOnce: runtimes must not, and if one does, one ADD wins,
// and lease and link are both there or both gone.
func TestCallsForOneContainerAtOnce(t *testing.T) {
	b := newBench(t)
	k := b.prepare(rule{})
	for round := range 5 {
		good := 0
		var calls []*invocation
		for i := range 8 {
			one := *k
			if one.command = "ADD"; round > 0 && i%2 == 1 {
				one.command = "DEL"
			}
			calls = append(calls, &one)
		}
		atOnce(t, calls, func(k *invocation) error {
			err := k.exec(b.m.path("bin/wayleave-cni"), k.command, conf)
			if k.exit == 0 || err != nil {
				return err
			}
			k.code, k.want = 4, "CNI_IFNAME"
			return k.judge()
		})
		for _, one := range calls {
			if one.command == "ADD" && one.exit == 0 {
				good++
			}
		}
		if good == 0 || round == 0 && good != 1 {
			t.Errorf("round %d: %d of the ADDs succeeded", round, good)
		}
		leases, linked := len(b.m.net.leases.List()), k.finds("ip -o link show eth0", "eth0") == nil
		if leases == 1 != linked {
			t.Errorf("round %d: %d leases, and the link is there: %t", round, leases, linked)
		}
		b.clean(k)
	}
}

// TestInputOfAForeignPlugin puts the rules of input to another plugin, for the table
// in docs/podnetwork.md: WAYLEAVE_FOREIGN_CNI is the path of the reference plugin
// "bridge", next to "host-local". It judges nobody.
func TestInputOfAForeignPlugin(t *testing.T) {
	bin := os.Getenv("WAYLEAVE_FOREIGN_CNI")
	if bin == "" {
		t.Skip("WAYLEAVE_FOREIGN_CNI is not set: this is for people")
	}
	b := newBench(t)
	foreign := strings.NewReplacer(`"type":"wayleave-cni"`,
		fmt.Sprintf(`"type":"bridge","bridge":"cni0","ipam":{"type":"host-local","subnet":"10.9.0.0/16","dataDir":%q}`,
			b.m.path("host-local")))
	for _, r := range inputRules {
		k := b.prepare(r)
		if err := k.exec(bin, cmp.Or(r.command, "ADD"), foreign.Replace(k.rule.conf), k.env...); err != nil {
			t.Fatal(err)
		}
		if err := k.judge(); err != nil {
			t.Logf("%s: exit %d: %s", r.says, k.exit, strings.Join(strings.Fields(k.out), " "))
		}
	}
	if _, err := os.Stat(b.m.path("host-local")); errors.Is(err, fs.ErrNotExist) {
		t.Error("the plugin never leased an address: is host-local there?")
	}
}
