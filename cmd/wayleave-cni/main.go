// Command wayleave-cni is the CNI plugin that the container runtime executes: a
// thin client of the agent on its node.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wayleave.dev/podnetwork/cni/call"
)

func main() {
	p := plugin{socket: env("WAYLEAVE_CNI_SOCKET", call.Socket), tombstones: env("WAYLEAVE_CNI_TOMBSTONES",
		call.Tombstones)}
	version, err := p.serve(os.Stdin, os.Stdout)
	if err == nil {
		return
	}
	if os.Getenv("CNI_COMMAND") == "" { // a person looks
		fmt.Fprintf(os.Stderr,
			"wayleave-cni: a client of the wayleave agent of this node\nCNI protocol versions supported: %s\n",
			strings.Join(versions, ", "))
	}
	if err := printError(os.Stdout, version, err); err != nil {
		fmt.Fprintln(os.Stderr, "wayleave-cni:", err)
	}
	os.Exit(1)
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// printError is the specification's form; version is the protocol's in use.
func printError(w io.Writer, version string, err error) error {
	var e *types.Error
	if !errors.As(err, &e) {
		e = call.Failure(types.ErrInternal, "%v", err)
	}
	return printJSON(w, struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{version, e})
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

type plugin struct{ socket, tombstones string }

// serve does one call. The version is the one to answer in.
func (p plugin) serve(in *os.File, out io.Writer) (version string, err error) {
	r, err := parameters(os.Getenv)
	if err != nil {
		return call.Version, err
	}
	if r.Command == "VERSION" {
		return call.Version, printVersion(in, out)
	}
	if r.Config, err = io.ReadAll(in); err != nil {
		return call.Version, call.Failure(types.ErrIOFailure, "standard input: %v", err)
	}
	if version, err = configuration(r.Command, r.Config); err != nil {
		return version, err
	}
	result, err := p.do(r)
	if err != nil || result == nil {
		return version, err
	}
	return version, printJSON(out, result)
}

func (p plugin) do(r call.Request) (json.RawMessage, error) {
	var ns *os.File
	var err error
	switch r.Command {
	case "DEL":
		return nil, p.del(r)
	case "ADD", "CHECK":
		if ns, err = openNetns(r.Netns); err != nil {
			return nil, err
		}
		defer ns.Close()
	}
	if r.Command == "ADD" {
		// One that was not taken yet would end this attachment.
		if err := os.Remove(p.tombstone(r)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	answer, err := p.call(r, ns)
	if errors.Is(err, call.ErrNoAgent) {
		code := types.ErrTryAgainLater
		if r.Command == "STATUS" {
			code = types.ErrPluginNotAvailable
		}
		return nil, call.Failure(code, "%v", err)
	}
	return answer, err
}

// openNetns opens the pod's namespace. The node's own is refused: the link would be
// made among the node's.
func openNetns(path string) (*os.File, error) {
	bad := func(format string, args ...any) (*os.File, error) {
		return nil, call.Failure(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: "+format, args...)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe must not block
	if err != nil {
		return bad("%v", err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return bad("%s is not a network namespace", path)
	}
	mine, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		f.Close()
		return nil, err
	}
	if its, err := f.Stat(); err == nil && os.SameFile(mine, its) {
		f.Close()
		return bad("%s is the network namespace of the node", path)
	}
	return f, nil
}

// patience is how long the runtime waits for the agent.
const patience = 30 * time.Second

func (p plugin) call(r call.Request, ns *os.File) (json.RawMessage, error) {
	answer, err := call.Call(p.socket, r, ns, patience)
	if err != nil {
		return nil, err
	}
	if answer.Error != nil {
		return nil, answer.Error
	}
	return answer.Result, nil
}

// del succeeds without an agent, too: the runtime could not end pods otherwise.
// The link goes here; the agent frees the lease when it is back.
func (p plugin) del(r call.Request) error {
	_, err := p.call(r, nil)
	if !errors.Is(err, call.ErrNoAgent) {
		return err
	}
	return errors.Join(p.bury(r), removeLink(r.ContainerID, r.IfName))
}

func (p plugin) tombstone(r call.Request) string {
	sum := sha256.Sum256([]byte(r.ContainerID + "/" + r.IfName))
	return filepath.Join(p.tombstones, hex.EncodeToString(sum[:16]))
}

// bury leaves a tombstone, whole or not at all.
func (p plugin) bury(r call.Request) error {
	if err := os.MkdirAll(p.tombstones, 0o700); err != nil {
		return err
	}
	raw, err := json.Marshal(map[string]string{"container": r.ContainerID, "interface": r.IfName})
	if err != nil {
		return err
	}
	file := p.tombstone(r)
	if err := os.WriteFile(file+".new", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// removeLink deletes the node's end, and with it the pod's, which goes by a name that
// others may use, too. The runtime executes plugins in the node's network namespace.
func removeLink(container, ifname string) error {
	link, err := netlink.LinkByName(call.HostName(container, ifname))
	if err != nil { // gone already
		return nil
	}
	return netlink.LinkDel(link)
}
