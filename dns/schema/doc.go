// Package schema defines what the agent and the DNS server exchange, and what the server stores on disk, as JSON:
// settings, records, sockets, the pods of the node. dns/frames has the messages. It parses nothing but that JSON.
//
// Invariant: agents and servers of two versions overlap during an upgrade. Fields keep their names, and a change of
// meaning increments frames.Version.
package schema
