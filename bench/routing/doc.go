// Package routing measures the pod network's ways between nodes, and BGP at scale.
package routing
