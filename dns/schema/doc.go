// Package schema is what the agent and the DNS server tell each other, and what the server keeps on the disk: JSON in
// the frames of internal/handoff. It parses nothing but that.
//
// Invariant: agents and servers of two versions overlap in an upgrade. A field that a server sends is known to the
// agents before it is sent; a change of meaning raises Version.
package schema
