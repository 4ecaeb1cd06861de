// Package bgp plans what a node announces to BGP peers, and to which: the desired state of the process bgp (package
// speaker), which is the only one that talks to peers.
package bgp
