package fastpath

import (
	"context"
	"errors"
	"net/netip"
)

// Pod is a pod of this node. Its MAC address is that of the permanent neighbour entry of its addresses.
type Pod struct {
	// Link is the node's end of the pod's link.
	Link string
	// Addrs are the pod's addresses.
	Addrs []netip.Addr
}

// State is what the programs serve.
type State struct {
	Pods []Pod
	// Uplinks are links to other nodes, with link-layer addresses. One that does not exist is left out.
	Uplinks []string
}

// Report is the result of Set.
type Report struct {
	// Pods and Uplinks are the numbers of links that have the program.
	Pods, Uplinks int
	// Shaped are links of pods that are left to the stack, because they have a queueing discipline.
	Shaped []string
}

// Redirected are numbers of packets.
type Redirected struct {
	// Local went to a pod of this node, Remote to another node.
	Local, Remote uint64
	// Begun are connections whose first packet was redirected, and Dropped answers to first packets whose connection
	// policy forbids by now.
	Begun, Dropped uint64
}

// ErrUnsupported means that the kernel has not what the program needs.
var ErrUnsupported = errors.New("the kernel does not support the fast path")

// Conn is the kernel. Its methods must not be called concurrently, except Redirected and Revoke.
type Conn interface {
	// Possible returns ErrUnsupported with the reason if the kernel lacks something. It leaves nothing.
	Possible() error
	// Set replaces the whole state. The first call replaces programs of an earlier process.
	Set(context.Context, State) (Report, error)
	// Revoke has the stack decide about each new connection that begins after it returns, and again once it has
	// accepted one. It is called after each change of the rules that decide. Programs of an earlier process leave new
	// connections to the stack for good.
	Revoke() error
	// Redirected returns what the programs have redirected since the first Set.
	Redirected() (Redirected, error)
	// Remove detaches all programs; connections continue by the stack.
	Remove(context.Context) error
	// Remains lists the links that have the program.
	Remains(context.Context) ([]string, error)
}
