// Package call is what the plugin and the agent say to each other. It imports little: the
// plugin is started anew for every pod.
//
// The plugin wayleave-cni opens the pod's network namespace and passes the
// descriptor, so that the agent needs neither the host's processes nor its mounts.
package call

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"wayleave.dev/internal/frame"
)

// Version is the newest version of the specification that is spoken.
const Version = "1.1.0"

// Type is the plugin's name in network configurations.
const Type = "wayleave-cni"

// Prefix is what the node's ends of our links are called by. No device of the kernel
// or of udev is called so (wl is for wireless ones).
const Prefix = "wy"

// HostName is the name of the node's end, at most 15 bytes, the same for the same
// container and interface.
func HostName(container, ifname string) string {
	sum := sha256.Sum256([]byte(container + "/" + ifname))
	return Prefix + hex.EncodeToString(sum[:5])
}

// Socket is where the agent listens, on the node.
const Socket = "/run/wayleave/cni.sock"

// Tombstones is the folder where the plugin leaves what it deleted while no agent
// was there to be told.
const Tombstones = "/var/lib/wayleave/cni-del"

// Request is one call of the plugin; the namespace's descriptor rides with it.
type Request struct {
	Command     string `json:"command"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	// Netns is CNI_NETNS, the path of the namespace as the runtime calls it.
	Netns string `json:"netns,omitempty"`
	// Args are those of CNI_ARGS: K8S_POD_NAMESPACE, K8S_POD_NAME …
	Args map[string]string `json:"args,omitempty"`
	// Config is the plugin's standard input.
	Config json.RawMessage `json:"config"`
}

// Response is the answer: a result, or an error in CNI's form.
type Response struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *types.Error    `json:"error,omitempty"`
}

// Failure makes an error with a code of the specification.
func Failure(code uint, format string, args ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

// ParseArgs reads CNI_ARGS, "K=V;K=V".
func ParseArgs(s string) (map[string]string, error) {
	out := map[string]string{}
	for pair := range strings.SplitSeq(s, ";") {
		if pair == "" {
			continue
		}
		k, v, ok := strings.Cut(pair, "=")
		if !ok || k == "" {
			return nil, Failure(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %q is not KEY=VALUE", pair)
		}
		out[k] = v
	}
	return out, nil
}

// ErrNoAgent says that the agent cannot be reached.
var ErrNoAgent = errors.New("the wayleave agent does not answer")

// Call asks the agent at a socket.
func Call(socket string, r Request, netns *os.File, patience time.Duration) (Response, error) {
	conn, err := net.DialTimeout("unix", socket, patience)
	if err != nil {
		return Response{}, fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	c := conn.(*net.UnixConn)
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return Response{}, err
	}
	if err := frame.ByAgent(c); err != nil {
		return Response{}, fmt.Errorf("%s: %w", socket, err)
	}
	var files []*os.File
	if netns != nil {
		files = append(files, netns)
	}
	if err := frame.Send(c, r, files); err != nil {
		return Response{}, fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	var out Response
	if _, err := frame.Receive(c, &out); err != nil {
		return Response{}, fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	return out, nil
}
