package kubernetes

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// rootOfNode is the part of a /proc/PID/status that makes a process count.
const rootOfNode = "Name:\tkubelet\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nNSpid:\t77\n"

const sleepEnv = "WAYLEAVE_TEST_SLEEP"

// As a process that calls itself kubelet, this program only sleeps.
func TestMain(m *testing.M) {
	if os.Getenv(sleepEnv) != "" {
		time.Sleep(time.Minute)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A pod that calls its process kubelet must not tell the node where DNS and the API server are.
func TestAPodsProcessIsNoKubelet(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run as root, to make a PID namespace")
	}
	for name, attr := range map[string]*syscall.SysProcAttr{
		"root in a container": {Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL},
		"another user of the node": {Credential: &syscall.Credential{Uid: 1000, Gid: 1000},
			Pdeathsig: syscall.SIGKILL},
		"another user in a container": {Credential: &syscall.Credential{Uid: 1000, Gid: 1000},
			Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe")
			cmd.Args = []string{"kubelet", "--cluster-dns=192.0.2.66", "--cluster-domain=evil.example"}
			cmd.Env, cmd.SysProcAttr = append(os.Environ(), sleepEnv+"=1"), attr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			// A root with this one process in its /proc: this machine may have others.
			root := t.TempDir()
			if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
				t.Fatal(err)
			}
			proc := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid))
			testnet.Eventually(t, 30*time.Second, func() error {
				raw, err := os.ReadFile(filepath.Join(proc, "cmdline"))
				if err == nil && !slices.Equal(raw[:min(8, len(raw))], []byte("kubelet\x00")) {
					err = fmt.Errorf("it is %q yet", raw)
				}
				return err
			})
			if err := os.Symlink(proc, filepath.Join(root, "proc", strconv.Itoa(cmd.Process.Pid))); err != nil {
				t.Fatal(err)
			}
			if addrs, domain, err := (Host{Root: root}).ClusterDNS(); len(addrs) > 0 || domain != "" || err != nil {
				t.Errorf("the node is told %v %q, %v", addrs, domain, err)
			}
		})
	}
}

func TestFactsSayWhatTheFilesSay(t *testing.T) {
	root, file := t.TempDir(), filepath.Join(t.TempDir(), "facts.json")
	read := func() (string, []netip.Addr, string, error) {
		t.Helper()
		if err := (Host{Root: root}).Discover().Write(file); err != nil {
			t.Fatal(err)
		}
		server, _, err := Host{Facts: file}.APIServer()
		addrs, domain, dnsErr := Host{Facts: file}.ClusterDNS()
		return server, addrs, domain, errors.Join(err, dnsErr)
	}
	// Nothing is known: the environment is asked next.
	if server, addrs, domain, err := read(); !errors.Is(err, fs.ErrNotExist) || server != "" || addrs != nil ||
		domain != "" {
		t.Errorf("found %q %v %q, %v", server, addrs, domain, err)
	}
	put(t, root, "/etc/kubernetes/kubelet.conf",
		"apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n"+
			"clusters: [{name: k, cluster: {server: \"https://192.0.2.1:6443\"}}]\nusers: [{name: u, user: "+
			"{token: secret}}]\n")
	put(t, root, "/var/lib/kubelet/config.yaml", "clusterDNS: [10.96.0.10]\nclusterDomain: example.local\n")
	server, addrs, domain, err := read()
	if err != nil || server != "https://192.0.2.1:6443" || len(addrs) != 1 || domain != "example.local" {
		t.Errorf("found %q %v %q, %v", server, addrs, domain, err)
	}
	if raw, err := os.ReadFile(file); err != nil || strings.Contains(string(raw), "secret") {
		t.Errorf("the file holds %q, %v", raw, err)
	}
	// What cannot be read is refused by the agent, as before.
	put(t, root, "/var/lib/kubelet/config.yaml", "clusterDNS: [nonsense]\n")
	put(t, root, "/etc/kubernetes/kubelet.conf", "{")
	if server, addrs, _, err := read(); err == nil || errors.Is(err, fs.ErrNotExist) || server != "" || addrs != nil {
		t.Errorf("found %q %v, %v", server, addrs, err)
	}
}
