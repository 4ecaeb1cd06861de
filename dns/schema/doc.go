// Package schema is what the agent and the DNS server tell each other, and what the server keeps on the disk, as JSON:
// settings, records, sockets, the pods of the node. dns/frames has the messages. It parses nothing but that JSON.
//
// Invariant: agents and servers of two versions overlap in an upgrade. Fields keep their names, and a change of
// meaning raises frames.Version.
package schema
