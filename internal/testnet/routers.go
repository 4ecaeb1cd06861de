package testnet

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Router is a BGP router that runs in a namespace, to judge what others announce.
type Router struct {
	ns  *NS
	t   testing.TB
	dir string
	frr bool
}

// NewBIRD runs BIRD 2 in the namespace with a configuration, until the test ends.
func NewBIRD(ns *NS, config string) *Router {
	ns.t.Helper()
	Need(ns.t, "bird", "birdc")
	r := &Router{ns: ns, t: ns.t, dir: ShortDir(ns.t)}
	r.write("bird.conf", config)
	r.start("bird", "-f", "-c", filepath.Join(r.dir, "bird.conf"), "-s", filepath.Join(r.dir, "ctl"))
	r.await("show", "status")
	return r
}

// NewFRR runs FRR's zebra and bgpd in the namespace with a configuration of bgpd, until the test ends.
func NewFRR(ns *NS, config string) *Router {
	ns.t.Helper()
	Need(ns.t, "zebra", "bgpd", "vtysh")
	r := &Router{ns: ns, t: ns.t, dir: Open(ns.t), frr: true}
	r.write("vtysh.conf", "username root nopassword\n")
	r.write("zebra.conf", "hostname router\n")
	r.write("bgpd.conf", config)
	for _, daemon := range []string{"zebra", "bgpd"} {
		r.start(daemon, "-f", filepath.Join(r.dir, daemon+".conf"), "-i", filepath.Join(r.dir, daemon+".pid"),
			"-z", filepath.Join(r.dir, "zserv"), "--vty_socket", r.dir, "-P", "0", "--log", "stdout", "--log-level",
			"errors")
		Eventually(r.t, 30*time.Second, func() error {
			_, err := os.Stat(filepath.Join(r.dir, daemon+".vty"))
			return err
		})
	}
	r.await("show bgp summary")
	return r
}

func (r *Router) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *Router) start(name string, args ...string) {
	r.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	r.ns.Must(cmd.Start)
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func (r *Router) await(command ...string) {
	r.t.Helper()
	Eventually(r.t, 30*time.Second, func() error {
		_, err := r.Try(command...)
		return err
	})
}

// Try gives the router a command of its shell, birdc or vtysh, and returns the answer.
func (r *Router) Try(command ...string) (string, error) {
	if r.frr {
		args := []string{"--vty_socket", r.dir, "--config_dir", r.dir}
		for _, c := range command {
			args = append(args, "-c", c)
		}
		return r.ns.Try("vtysh", args...)
	}
	return r.ns.Try("birdc", append([]string{"-s", filepath.Join(r.dir, "ctl")}, command...)...)
}

// Show is Try; an error fails the test.
func (r *Router) Show(command ...string) string {
	r.t.Helper()
	out, err := r.Try(command...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// Reconfigure has BIRD read another configuration.
func (r *Router) Reconfigure(config string) {
	r.t.Helper()
	r.write("bird.conf", config)
	if out := r.Show("configure"); out == "" {
		r.t.Fatal(fmt.Errorf("birdc configure says nothing"))
	}
}
