// Package loadbalancer gives Services of type LoadBalancer their addresses, and says
// which nodes may answer for them.
//
// Invariants:
//   - It is pure: no I/O, no clock, no chance. The same objects in the same order give the
//     same addresses.
//   - An address belongs to one Service, or to several of one sharing key.
//   - A Service keeps its addresses while it stays a LoadBalancer, whatever becomes of the
//     pools. Only its own wish (another address asked for, a family less) changes them.
//   - A change costs what changed: no address is looked for by going through those in use.
package loadbalancer
