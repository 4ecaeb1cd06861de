// Package sockets translates Services at the socket, before a packet exists: programs at a cgroup choose the endpoint
// when a process connects a TCP socket, or sends a datagram by an unconnected UDP socket.
//
// The programs serve two kinds of network namespaces: the node's own, and those of its pods. A namespace becomes known
// as a pod's when a TCP connection starts there with an address in Node.Pods; until then, and in every other
// namespace, a socket keeps its destination. So does a socket for which the programs are not exact: one that is bound
// to a port, a connected UDP socket, one with more VIPs than it can remember. Rules must therefore exist for each
// frontend, and translate what the programs do not.
//
// A frontend leads to the slots of one generation. A change writes the slots of a new generation, then the frontend,
// and deletes the old slots last: a program never sees a mixture, and passes the socket unchanged if it meets slots
// that have just been deleted.
//
// Maps and links are pinned in a folder with the version of their layout, so the programs continue without the agent,
// and the next agent adopts them.
package sockets

//go:generate ../../../hack/bpf program sockets.c
