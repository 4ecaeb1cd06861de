// Package loadbalancer allocates addresses for Services of type LoadBalancer, and selects the nodes that may answer
// for them.
//
// Invariants:
//   - It is pure: no I/O, no clock, no randomness. The same objects in the same order get the same addresses.
//   - An address belongs to one Service, or to several of one sharing key.
//   - A Service keeps its addresses while its type is LoadBalancer, whatever happens to the pools. Only its own
//     request (another address, or one family less) changes them.
//   - The same nodes give the same owner of an address on every node, so nodes need no agreement.
//   - A change costs only what changed: no search visits the addresses in use.
package loadbalancer
