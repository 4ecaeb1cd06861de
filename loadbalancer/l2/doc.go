// Package l2 answers for addresses of load balancers on the local network: ARP (RFC 826,
// RFC 5227) and neighbour discovery (RFC 4861), over packet sockets.
//
// Frames are parsed where they lie, without allocation; whatever a frame holds, it
// is answered or ignored. No address is put on an interface: the kernel of the node does
// not know that it is asked for one.
package l2
