// Package l2 answers for load-balancer addresses on the local network: ARP (RFC 826, RFC 5227) and neighbour
// discovery (RFC 4861), over packet sockets.
//
// Frames are parsed in place, without allocation; whatever a frame contains, it is answered or ignored. No interface
// gets an address: the node's kernel does not know about them.
package l2
