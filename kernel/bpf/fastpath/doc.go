// Package fastpath redirects packets of connections of pods past the network stack of the node: from pod to pod on one
// node, and between pods and the links to other nodes.
//
// Connection tracking stays the authority, and the only table of connections. Policies, translation and the checks of
// sources decide in the stack. A packet is redirected only if the connection's entry says that the stack would accept
// it as established, and translate nothing: confirmed, answered, TCP in state ESTABLISHED, without translation,
// without helper, and without a mark (a connection that policy forbids has one). The answer is cached per flow for 100
// ms; then it is asked for again, and the entry's timeout is renewed. Everything else, such as fragments, options,
// other protocols and packets above the MTU, goes to the stack unchanged.
//
// A new connection repeats a verdict of the stack: a SYN is redirected up to half a second after the stack accepted one
// from the same link and address to the same address and port, in the same generation (see Conn.Revoke). The program
// enters the connection in connection tracking, where it has no state until the stack has seen the third packet.
//
// The maps of flows and pairs are caches. Programs are attached without pins: they continue without the agent, and end
// with their link. The next agent loads programs and maps of its own and replaces the programs one by one.
//
// Connection tracking misses most packets of a connection, so it must not judge sequence numbers: the sysctl
// net.netfilter.nf_conntrack_tcp_be_liberal must be 1.
package fastpath

//go:generate ../../../hack/bpf program fastpath.c
